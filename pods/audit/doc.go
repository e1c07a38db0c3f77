// Package audit keeps what was done outwards, and on whose word: pods begun and
// refused, orders and messages of people taken, what went to the forge. Each act is
// one line of JSON, an [Entry], in a file that lines are only ever added to.
//
// Several processes may add to one file, and follow it, at the same time: a lock beside
// it keeps them apart. A line is there when [Log.Add] returns, also after a loss of
// power; what a kill has left of one is skipped by those who read, and never joined to
// the next. When a file would become larger than [Config.MaxSize] it becomes PATH.1, in
// the place of the one before, so that what is kept is never less than that much.
//
// Texts of others are bounded and printable as they are written, so that no reader has
// to take care. What [Config.Hide] takes out of them is not in the file.
package audit
