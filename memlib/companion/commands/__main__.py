"""``python -m memlib.companion.commands``: the command where its script is not on the PATH."""

import sys

from memlib.companion.commands import main

sys.exit(main())
