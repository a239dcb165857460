"""A policy for robots elsewhere: what runs it here, who may ask, and what stands in for it there."""
