"""LeRobot datasets: read (v2.0, v2.1, v3.0) and written (v3.0), frame by frame."""
