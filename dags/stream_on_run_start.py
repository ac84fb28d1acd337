"""Stream a run to its analysis while it is taken: reserve, start, watch, stop.

The watcher of the Elog starts it when a run begins; the workflow definition says what to read
and what to run (`parameters`). Copy this file to make a DAG of your own.
"""

from datetime import timedelta

from airflow.sdk import DAG, Param

from lclstream.operators import (
    ReserveTransferOperator,
    StartBufferOperator,
    StopTransferOperator,
    SubmitJobOperator,
    SubmitStreamerOperator,
    SuperviseTransferOperator,
)

with DAG(
    "stream_on_run_start",
    catchup=False,
    max_active_runs=16,
    render_template_as_native_obj=True,  # a template that is one value keeps its type
    default_args={"retries": 3, "retry_delay": timedelta(seconds=5)},
    params={
        "experiment": Param("", type="string", description="such as mfx101332224"),
        "run": Param(0, type=["integer", "string"], description="number of the run"),
        "begin_time": Param(None, type=["null", "string"], description="when it began"),
        "parameters": Param({}, type="object", description="of the workflow definition"),
    },
) as dag:
    reserve = ReserveTransferOperator(
        task_id="reserve",
        experiment=dag.param("experiment"),
        run=dag.param("run"),  # as it is: a template would read "20260101_7" as a number
        begin_time=dag.param("begin_time"),
        max_age_s="{{ params.parameters.max_age_s | default(0) }}",
        refuse_ended="{{ params.parameters.refuse_ended | default(False) }}",
        streamer="{{ params.parameters.streamer }}",
        producers="{{ params.parameters.producers | default(1) }}",
        site="{{ params.parameters.producer_site | default('') }}",
    )
    start_buffer = StartBufferOperator(task_id="start_buffer", transfer=reserve.output)
    submit_streamer = SubmitStreamerOperator(task_id="submit_streamer", transfer=reserve.output)
    submit_analysis = SubmitJobOperator(
        task_id="submit_analysis",
        transfer=reserve.output,
        script="{{ params.parameters.analysis }}",
        site="{{ params.parameters.analysis_site | default('') }}",
        count="{{ params.parameters.consumers | default(1) }}",
        environment="{{ params.parameters.environment | default({}) }}",
        job_resources="{{ params.parameters.resources | default({}) }}",
    )
    supervise = SuperviseTransferOperator(task_id="supervise", transfer=reserve.output)
    stop = StopTransferOperator(task_id="stop", transfer=reserve.output)

    reserve >> start_buffer >> [submit_streamer, submit_analysis] >> supervise >> stop
    # `stop` runs whatever happens to the others, and fails the run unless all were well.
    stop.as_teardown(setups=reserve, on_failure_fail_dagrun=True)
