"""A stand-in with LeRobot's interface: enough of it to drive an arm of two joints that exists in memory alone."""
