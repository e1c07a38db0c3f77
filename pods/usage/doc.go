// Package usage counts what an agent's model costs: tokens, money and time. A
// [Journal] is the account of one issue's pods. The pod's gate writes it: what a
// request may cost at most before it is sent, and what it did cost once its
// answer has ended, so that the account is true after a kill at any moment. The
// service reads it.
package usage
