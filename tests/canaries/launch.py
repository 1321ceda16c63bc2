"""`python -m tests.canaries.launch MODULE ARGUMENTS...`: run a module as `python -m` does, with the bug of
the environment.
"""

import runpy
import sys

from tests.canaries.bugs import apply_from_environment

if __name__ == "__main__":
    apply_from_environment()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
