"""Semi-supervised training with entropy-masked consistency: ``python -m train --help``."""
