"""Hazards of streams, background tasks, and tasks that outlive their request."""

from benchmarks.hazards.catalogue import hazard
from benchmarks.hazards.findings import HELD, Finding, judge_afterwards, judge_stream
from benchmarks.hazards.stage import Stage
from tests.support.wait import wait_until


def raised(stage: Stage) -> str:
    """What the app has raised out of everything, to be put behind other words."""
    found = [each.removeprefix("raised ") for each in stage.told() if each.startswith("raised ")]
    return f", {found[-1]}" if found else ""


@hazard("read while streaming", "The generator of a streaming GET reads with the session of its request.")
def read_while_streaming(stage: Stage) -> Finding:
    stage.backend.execute("INSERT INTO items (name) VALUES ('b'), ('c')")
    body = stage.whole(stage.raw("GET", "/stream"))
    stage.wait_until_through()
    if body == b"names:\nb\nc\nend\n":
        return Finding(HELD, "the whole body")
    return Finding("refused", f"cut body{raised(stage)}")


@hazard("client leaves a stream", "The same, and the client resets its connection in the middle of the body.")
def client_leaves_a_stream(stage: Stage) -> Finding:
    client = stage.raw("GET", "/long-stream")

    def in_the_middle() -> bool:
        seen = stage.seen()
        return "waiting" in seen["told"] or seen["in_flight"] == 0

    wait_until(in_the_middle, "the stream is in its middle, or over")
    waiting = "waiting" in stage.told()
    client.reset()
    if waiting:
        stage.release()
    stage.wait_until_through()
    if not waiting:
        return Finding("refused", f"no such stream{raised(stage)}")
    return Finding(HELD, "it streamed until then")


@hazard("write while streaming", "The generator of a streaming POST writes with the session of its request.")
def write_while_streaming(stage: Stage) -> Finding:
    body = stage.whole(stage.raw("POST", "/stream"))
    stage.wait_until_through()
    return judge_stream(body == b"writing\nend\n", stage.rows(), raised(stage))


@hazard("write in a background task", "A background task writes with the session of its request.")
def write_in_background(stage: Stage) -> Finding:
    status = stage.post("/background")
    stage.wait_until_told("written", "refused")
    stage.wait_until_through()
    return judge_afterwards(status, stage.rows(), stage.told())


@hazard(
    "background task, own session",
    "A background task writes in a session of its own, as the documentation says.",
)
def own_session_in_background(stage: Stage) -> Finding:
    status = stage.post("/background-own")
    stage.wait_until_through()
    return judge_afterwards(status, stage.rows(), stage.told())


@hazard(
    "task outlives its request",
    "A task that a handler has started writes after the answer, with the same session.",
)
def task_outlives_request(stage: Stage) -> Finding:
    status = stage.post("/task")
    stage.wait_until_through()
    stage.release()
    stage.wait_until_told("written", "refused")
    return judge_afterwards(status, stage.rows(), stage.told())
