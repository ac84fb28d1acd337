"""The logbook's calls, at its own addresses and with its own habits."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, Response

from lclstream.core.errors import BackendError, LclstreamError, NotFoundError
from lclstream.core.http import install_error_handlers
from lclstream.elog.models import Trigger
from lclstream.elog.standin.documents import Doc
from lclstream.elog.standin.experiment import Experiment, RefusedError
from lclstream.elog.standin.logbook import Logbook
from lclstream.elog.standin.page import page
from lclstream.identity.caller import CallerDep, caller


def answer(value: Any) -> Response:
    """Return a success; `NaN` goes out as a bare word, as the real one sends it."""
    text = json.dumps({"success": True, "value": value})
    return Response(text, media_type="application/json")


async def body_of(request: Request) -> Any:
    """Return the decoded body of a request, None when it has none."""
    raw = await request.body()
    if not raw:
        return None
    try:
        return json.loads(raw)
    except ValueError:
        raise RefusedError("the body is not JSON") from None


def object_of(body: Any) -> Doc:
    """Return a body that has to be an object; none at all is an empty one."""
    if body is None:
        return {}
    if not isinstance(body, dict):
        raise RefusedError("expected a JSON object")
    return body


Body = Annotated[Any, Depends(body_of)]


def standin_app(logbook: Logbook, user_header: str | None = None) -> FastAPI:
    """Return the application.

    Args:
        logbook: the state.
        user_header: request header with the user's name; None takes it from the certificate.
    """
    app = FastAPI(title="Elog stand-in", docs_url=None, redoc_url=None)
    install_error_handlers(app)
    _install_habits(app)
    open_to_all = [Depends(caller)]

    def user_of(request: Request, called_by: CallerDep) -> str:
        named = request.headers.get(user_header) if user_header else None
        return named or called_by.name.partition(":")[2]

    def experiment_of(experiment: str) -> Experiment:
        return logbook.experiment(experiment)

    user = Annotated[str, Depends(user_of)]
    of = Annotated[Experiment, Depends(experiment_of)]
    app.include_router(_control(of), prefix="/run_control", dependencies=open_to_all)
    for routes in (_site(logbook, user), _control(of), _files(of), _samples(of)):
        app.include_router(routes, prefix="/lgbk", dependencies=open_to_all)
    for routes in (_entries(of, user), _workflows(of, user)):
        app.include_router(routes, prefix="/lgbk", dependencies=open_to_all)
    app.include_router(_counters(of), dependencies=open_to_all)

    @app.get("/", response_class=HTMLResponse, dependencies=open_to_all)
    async def show() -> str:
        return page(logbook)

    return app


def _install_habits(app: FastAPI) -> None:
    """Refusals are 200 in JSON; an unknown experiment and a failure are pages."""

    async def refuse(request: Request, error: Exception) -> Response:
        text = json.dumps({"success": False, "errormsg": str(error)})
        return Response(text, media_type="application/json")

    async def fail(request: Request, error: Exception) -> Response:
        status = 404 if isinstance(error, NotFoundError) else 500
        return PlainTextResponse(str(error), status_code=status)

    handlers: tuple[tuple[type[LclstreamError], Any], ...] = (
        (RefusedError, refuse),
        (NotFoundError, fail),
        (BackendError, fail),
    )
    for kind, handler in handlers:
        app.add_exception_handler(kind, handler)


def _site(logbook: Logbook, user: Any) -> APIRouter:
    routes = APIRouter()

    @routes.post("/ws/register_new_experiment")
    async def register(experiment_name: str, body: Body) -> Response:
        return answer(logbook.register_experiment(experiment_name, object_of(body)))

    @routes.post("/ws/switch_experiment")
    async def switch(body: Body, by: user) -> Response:
        given = object_of(body)
        name, instrument = str(given.get("experiment_name")), str(given.get("instrument"))
        return answer(logbook.switch_experiment(name, instrument, given.get("station"), by))

    @routes.get("/ws/activeexperiment_for_instrument_station")
    async def active(instrument_name: str, station: int) -> Response:
        return answer(logbook.active_experiment(instrument_name, station))

    return routes


def _control(of: Any) -> APIRouter:
    routes = APIRouter()

    @routes.api_route("/{experiment}/ws/start_run", methods=["GET", "POST"])
    async def start_run(
        book: of,
        body: Body,
        run_type: str = "DATA",
        run_num: str | None = None,
        start_time: str = "",
    ) -> Response:
        params = object_of(body)
        return answer(book.start_run(params, number=run_num, kind=run_type, start=start_time))

    @routes.api_route("/{experiment}/ws/end_run", methods=["GET", "POST"])
    async def end_run(book: of, end_time: str = "") -> Response:
        return answer(book.end_run(end_time))

    @routes.get("/{experiment}/ws/current_run")
    async def current_run(book: of, skipClosedRuns: bool = False) -> Response:  # noqa: N803
        return answer(book.current_run(skip_closed=skipClosedRuns))

    @routes.post("/{experiment}/ws/add_run_params")
    async def add_run_params(book: of, body: Body, run_num: str | None = None) -> Response:
        return answer(book.add_params(run_num, object_of(body)))

    return routes


def _files(of: Any) -> APIRouter:
    routes = APIRouter()

    @routes.post("/{experiment}/ws/register_file")
    async def register_file(book: of, body: Body) -> Response:
        if isinstance(body, list):
            return answer([book.register_file(object_of(each)) for each in body])
        return answer(book.register_file(object_of(body)))

    @routes.get("/{experiment}/ws/file_available_at_location")
    async def file_available(book: of, location: str, file_path: str) -> Response:
        return answer(book.file_available(file_path, location))

    @routes.get("/{experiment}/ws/runs")
    async def runs(book: of, includeParams: bool = True) -> Response:  # noqa: N803
        hidden = () if includeParams else ("params", "editable_params")
        documents = [each.document() for each in book.runs.values()]
        return answer([{key: doc[key] for key in doc if key not in hidden} for doc in documents])

    @routes.get("/{experiment}/ws/runs/{number}")
    async def run(book: of, number: str) -> Response:
        return answer(book.run(number).document())

    @routes.get("/{experiment}/ws/{number}/files")
    async def run_files(book: of, number: str) -> Response:
        return answer(book.run_files(book.run(number).num))

    return routes


def _samples(of: Any) -> APIRouter:
    routes = APIRouter()

    @routes.get("/{experiment}/ws/samples")
    async def samples(book: of) -> Response:
        return answer(list(book.samples.values()))

    @routes.post("/{experiment}/ws/samples/")
    async def create_sample(book: of, body: Body) -> Response:
        given = object_of(body)
        name, text = str(given.get("name", "")), str(given.get("description", ""))
        return answer(book.create_sample(name, text, object_of(given.get("params"))))

    @routes.get("/{experiment}/ws/make_sample_current")
    async def make_sample_current(book: of, sample_name: str) -> Response:
        return answer(book.make_sample_current(sample_name))

    return routes


def _entries(of: Any, user: Any) -> APIRouter:
    routes = APIRouter()

    @routes.post("/{experiment}/ws/new_elog_entry")
    async def new_entry(request: Request, book: of, by: user) -> Response:
        async with request.form() as form:
            given = {name: str(value) for name, value in form.items()}
        return answer(
            book.new_entry(
                given.get("log_text", ""),
                author=by,
                title=given.get("log_title"),
                tags=given.get("log_tags", "").split(),
                run=given.get("run_num"),
            )
        )

    @routes.get("/{experiment}/ws/elog")
    async def entries(book: of) -> Response:
        return answer(book.entries)

    return routes


def _workflows(of: Any, user: Any) -> APIRouter:
    routes = APIRouter()

    @routes.get("/{experiment}/ws/workflow_definitions")
    async def definitions(book: of) -> Response:
        return answer(list(book.definitions.values()))

    @routes.get("/{experiment}/ws/workflow_triggers")
    async def workflow_triggers(book: of) -> Response:
        return answer([trigger.value for trigger in Trigger])

    @routes.get("/{experiment}/ws/dm_locations")
    async def locations(book: of) -> Response:
        return answer([{"name": name, "jid_prefix": "/"} for name in book.locations])

    @routes.post("/{experiment}/ws/create_update_workflow_def")
    async def create_definition(book: of, body: Body, by: user) -> Response:
        return answer(book.create_definition(object_of(body), by))

    @routes.get("/{experiment}/ws/workflow_jobs")
    async def jobs(book: of) -> Response:
        return answer(list(book.jobs.values()))

    @routes.post("/{experiment}/ws/create_workflow_job")
    async def create_job(book: of, body: Body, by: user) -> Response:
        given = object_of(body)
        return answer(book.create_job(given.get("job_name"), given.get("run_num"), by))

    @routes.post("/{experiment}/ws/update_workflow_job")
    async def update_job(book: of, body: Body) -> Response:
        return answer(book.update_job(object_of(body)))

    return routes


def _counters(of: Any) -> APIRouter:
    routes = APIRouter()

    @routes.post("/jid/ws/{verb}/{experiment}/{job}")
    async def counters(book: of, verb: str, job: str, body: Body) -> Response:
        if verb == "get_counters":
            return answer(book.counters.get(job, []))
        if not isinstance(body, list) or not all(isinstance(each, dict) for each in body):
            raise RefusedError("expected a list of objects with key and value")
        book.set_counters(job, body)
        return answer(None)

    return routes
