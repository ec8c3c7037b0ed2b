"""What builds entmask_ext: PEP 517 hooks, the torch and nvcc to build against, and the ninja file."""
