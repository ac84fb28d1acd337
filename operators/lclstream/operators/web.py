"""The application that the plug-in mounts at `/lclstream`."""

from fastapi import FastAPI

from lclstream.core.http import install_error_handlers
from lclstream.operators.routes import router


def make_app() -> FastAPI:
    """Return the application; the documentation pages of FastAPI would have no guard."""
    app = FastAPI(title="LCLStream", openapi_url=None, docs_url=None, redoc_url=None)
    install_error_handlers(app)
    app.include_router(router)
    return app
