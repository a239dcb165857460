"""Robots and what drives them by hand: one small interface, a simulated robot, and a door to LeRobot's drivers."""
