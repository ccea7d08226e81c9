"""XLA compiles for the tests in a hurry: they are many and small."""

import os

os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
