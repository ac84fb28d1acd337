"""What a watcher promises on any broker: each event makes one DAG run, whatever dies."""

import signal
from contextlib import ExitStack

import pytest
from tests.elog.world import DAG, World, until, wait_until


class WatcherSuite:
    """Needs a fixture `world`; subclassed for each kind of broker."""

    @pytest.mark.anyio
    async def test_an_event_delivered_twice_makes_one_run(self, world: World) -> None:
        event = world.begin(42)
        async with world.watcher():
            world.produce(event, partition=0)
            await until(lambda: world.run_id(42) in world.airflow.ids)
            # Another partition: the order between them is unknown.
            world.produce(event, event, partition=1)
            await until(lambda: world.uncommitted() == 0)
        assert world.airflow.ids == {world.run_id(42): 1}
        conf = world.airflow.runs[DAG, world.run_id(42)]["conf"]
        assert conf["experiment"] == world.experiment
        assert conf["run"] == 42
        assert conf["trigger"] == "START_OF_RUN"
        assert conf["kafka"]["topic"] == "runs"

    def test_killed_between_trigger_and_commit(self, world: World) -> None:
        world.produce(world.begin())
        with world.process() as first:
            # Airflow has made the run, the watcher has no answer: the worst moment.
            world.airflow.before_answer = lambda _: first.send_signal(signal.SIGKILL)
            world.airflow.wait_for(lambda: len(world.airflow.posts) == 1)
            first.wait(30)
        assert world.uncommitted() == 1
        world.airflow.before_answer = lambda _: None
        with world.process() as second:
            world.airflow.wait_for(lambda: len(world.airflow.posts) == 2)
            wait_until(lambda: world.uncommitted() == 0)
            second.terminate()
            assert second.wait(30) == 0
        assert world.airflow.posts == [(world.run_id(), "200"), (world.run_id(), "409")]
        assert world.airflow.ids == {world.run_id(): 1}

    def test_two_watchers_share_the_work_and_take_over(self, world: World) -> None:
        with ExitStack() as stack:
            first = stack.enter_context(world.process(ready_file="first.json"))
            second = stack.enter_context(world.process(ready_file="second.json"))
            for name in ("first.json", "second.json"):
                wait_until(lambda name=name: (world.folder / name).is_file())  # type: ignore[misc]
            world.produce(*[world.begin(number) for number in range(1, 9)])
            world.airflow.wait_for(lambda: len(world.airflow.ids) == 8)
            first.kill()
            world.produce(*[world.begin(number) for number in range(9, 13)])
            world.airflow.wait_for(lambda: len(world.airflow.ids) == 12)
            wait_until(lambda: world.uncommitted() == 0)
            second.terminate()
            assert second.wait(30) == 0
        assert set(world.airflow.ids.values()) == {1}

    @pytest.mark.anyio
    async def test_a_poison_message_is_put_aside(self, world: World) -> None:
        async with world.watcher():
            world.produce(b"{broken", world.begin(1), b'{"value": null}', partition=2)
            await until(lambda: world.run_id() in world.airflow.ids)
            await until(lambda: world.uncommitted() == 0)
        broken, null = world.letters()
        assert broken["value"] == "{broken"
        assert broken["error"].startswith("not JSON")
        assert (broken["topic"], broken["partition"]) == ("runs", 2)
        assert null["offset"] == broken["offset"] + 2
