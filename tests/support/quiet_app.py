"""The app as a quiet worker has it: no remote control, no events, and started `--without-gossip --without-heartbeat`.

Nothing is left then that would notice a lost broker while every hand is full. (With heartbeat events the next one of them may happen to
wait for the broker's return before an acknowledgement can fail, and the worker then goes on.)
"""

from __future__ import annotations

import time

from tasks.celery_app import app

app.conf.worker_enable_remote_control = False
app.conf.worker_send_task_events = False


@app.task(name="tests.block", queue="turns")
async def block(seconds: float) -> None:
    """Block the loop, as a task with a blocking call does."""
    time.sleep(seconds)
