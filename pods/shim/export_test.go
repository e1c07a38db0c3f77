package shim

// TellPrograms is what [Run] does after the clone.
func (c *Config) TellPrograms() error { return c.tellPrograms() }
