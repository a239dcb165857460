"""Processing between data and policy: names, instruction, device and normalization, and the inverse for actions."""
