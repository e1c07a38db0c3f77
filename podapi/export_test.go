package podapi

import "time"

// SetSlowest sets how long watchers of servers that are made from now on may take.
func SetSlowest(d time.Duration) { slowest = d }
