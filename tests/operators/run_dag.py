"""Run a DAG once for each conf in a file, in this process, and print how each run ended.

`dag.test()` leaves threads behind, and a database session: it gets a process of its own.
"""

import json
import sys
from pathlib import Path
from typing import Any

from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
from airflow.models.dagbundle import DagBundleModel
from airflow.utils.session import create_session

MARK = "ENDED "


def main(dags: str, dag_id: str, confs: str) -> None:
    with create_session() as session:
        session.merge(DagBundleModel(name="tests"))
    bag = DagBag(dags)
    assert not bag.import_errors, bag.import_errors
    sync_bag_to_db(bag, bundle_name="tests", bundle_version="1")
    for conf in json.loads(Path(confs).read_text()):
        result = run(bag.dags[dag_id], conf)
        sys.stdout.write(f"{MARK}{json.dumps(result)}\n")


def run(dag: Any, conf: dict[str, Any]) -> dict[str, Any]:
    dag_run = dag.test(run_conf=conf)
    with create_session() as session:
        tasks = session.merge(dag_run).get_task_instances(session=session)
        states = {task.task_id: str(task.state) for task in tasks}
    return {"state": str(dag_run.state), "tasks": states}


if __name__ == "__main__":
    main(*sys.argv[1:])
