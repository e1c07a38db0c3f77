package pods

// For the test of what it says.
var SeccompProfile = seccompProfile
