#!/usr/bin/env python
"""The subcommand ``glipv2 finetune``, without an installed package."""

import sys

from glipv2_cli.finetune import main

sys.exit(main())
