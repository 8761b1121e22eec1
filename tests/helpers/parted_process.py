"""`ipt-train pretrain` where `--data` leads nowhere for the second process, as on a machine without that disk."""

from __future__ import annotations

import os
import sys

from ipt_triton.train.fit import pretrain

if __name__ == "__main__":
    words = sys.argv[1:]
    if os.environ.get("LOCAL_RANK") == "1":
        words[words.index("--data") + 1] += "-not-mounted"
    sys.exit(pretrain.main(words))
