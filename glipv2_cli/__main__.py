"""``python -m glipv2_cli``: the command where its script is not on the path."""

import sys

from glipv2_cli.main import main

sys.exit(main())
