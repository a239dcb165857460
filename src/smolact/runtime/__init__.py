"""Running a policy: one protocol for every kind of policy, the chunk queue, and the control loop that moves a robot."""
