"""What stands between data and policy: names, instruction, device and normalization, and the way back for actions."""
