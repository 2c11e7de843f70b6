"""What an exception tells of where it has been: which lines, and not what was in their variables.

Error reporters record the local variables of every frame (Sentry, structlog and rich by default, cgitb). Those of ours
hold tokens, secrets and the heads of requests. Knows nothing of what they are.
"""

from __future__ import annotations

import traceback


def forget_details(error: BaseException) -> None:
    """Empty the frames that an exception has come through, as far as they are over; files and lines remain.

    The same for the exceptions that are reported with it. What `from None` keeps out of sight is let go of.
    """
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        traceback.clear_frames(each.__traceback__)
        if each.__suppress_context__:
            each.__context__ = None
        each = each.__cause__ or each.__context__
