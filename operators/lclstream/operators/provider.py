"""What Airflow's list of providers says about us."""

from importlib.metadata import version
from typing import Any

OPERATORS = "lclstream.operators"


def get_provider_info() -> dict[str, Any]:
    """Return the description that the entry point `apache_airflow_provider` gives to Airflow."""
    return {
        "package-name": "lclstream",
        "name": "LCLStream",
        "description": "Stream X-ray science data between facilities.",
        "versions": [version("lclstream")],
        "integrations": [
            {
                "integration-name": "LCLStream",
                "external-doc-url": "https://github.com/slac-lcls",
                "tags": ["service"],
            }
        ],
        "operators": [
            {
                "integration-name": "LCLStream",
                "python-modules": [
                    f"{OPERATORS}.jobs",
                    f"{OPERATORS}.supervise",
                    f"{OPERATORS}.transfer",
                ],
            }
        ],
        "hooks": [{"integration-name": "LCLStream", "python-modules": [f"{OPERATORS}.hooks"]}],
        "triggers": [
            {"integration-name": "LCLStream", "python-modules": [f"{OPERATORS}.triggers"]}
        ],
        "connection-types": [_transfers(), _elog()],
        "extra-links": [f"{OPERATORS}.links.TransferLink", f"{OPERATORS}.links.JobLogsLink"],
        # The plug-in is not named here: it has an entry point of its own, and a second door
        # to one plug-in is an import error.
    }


def _identity_field() -> dict[str, Any]:
    return {
        "label": "Identity folder",
        "description": "Folder with id.crt, id.key and ca.crt, readable by Airflow",
        "schema": {"type": ["string", "null"]},
    }


def _transfers() -> dict[str, Any]:
    return {
        "connection-type": "lclstream",
        "hook-class-name": f"{OPERATORS}.hooks.LclstreamHook",
        "hook-name": "LCLStream",
        "conn-fields": {"identity": _identity_field()},
        "ui-field-behaviour": {
            "hidden-fields": ["schema", "login", "password"],
            "relabeling": {"host": "URL of the transfers service"},
            "placeholders": {"host": "https://transfers.example.org:8443"},
        },
    }


def _elog() -> dict[str, Any]:
    return {
        "connection-type": "lclstream_elog",
        "hook-class-name": f"{OPERATORS}.elog.ElogHook",
        "hook-name": "LCLStream Elog",
        "conn-fields": {"identity": _identity_field()},
        "ui-field-behaviour": {
            "hidden-fields": ["schema", "login", "password"],
            "relabeling": {"host": "URL of the Elog"},
            "placeholders": {"host": "https://pswww.slac.stanford.edu"},
        },
    }
