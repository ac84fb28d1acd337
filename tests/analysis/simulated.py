"""A simulated run, made into messages by the streamer's own parts."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from lclstream.core.ledger import Tally
from lclstream.streamer.batching import Batcher
from lclstream.streamer.config import Parameters, parse_parameters
from lclstream.streamer.data_sources import Extractor
from lclstream.streamer.events import Event, open_event_source
from lclstream.streamer.rank import Place
from lclstream.streamer.serializers import open_serializer


class SimulatedRun:
    """The messages of one rank for some events of a small simulated detector."""

    def __init__(
        self, config: Path, field: str = "raw.calib", compression: str | None = None, **source: Any
    ) -> None:
        self.config = config
        settings = {"events": 40, "shape": [128, 192], "panels": 2, "distance_mm": 50.0, **source}
        document = {
            "source_identifier": "exp=mfx1,run=7",
            "event_source": {"type": "SimulatedDetectorEventSource", **settings},
            "data_sources": {
                "timestamp": {"type": "Psana2Timestamp"},
                "frame": {
                    "type": "Psana2DetectorInterface",
                    "psana_name": "jungfrau",
                    "psana_fields": field,
                },
                "mask": {
                    "type": "Psana2DetectorInterface",
                    "psana_name": "jungfrau",
                    "psana_fields": "raw.mask",
                },
                "energy": {"type": "EventValue", "name": "SIOC:SYS0:ML00:AO627"},
            },
            "processing_pipeline": {"type": "BatchProcessingPipeline", "batch_size": 4},
            "data_serializer": {
                "type": "HDF5BinarySerializer",
                "compression": compression,
                "fields": {
                    "timestamp": "/data/timestamp",
                    "frame": "/data/data",
                    "mask": "/data/mask",
                    "energy": "/data/energy",
                },
            },
        }
        config.write_text(json.dumps(document))
        self.parameters: Parameters = parse_parameters(document)

    @cached_property
    def events(self) -> list[Event]:
        return list(open_event_source(self.parameters, 0, 1))

    @cached_property
    def messages(self) -> list[bytes]:
        serializer = open_serializer(self.parameters, Place(0, 1))
        labels = list(self.parameters.data_sources)
        extractor = Extractor(self.parameters, labels)
        batcher = Batcher(tuple(labels), 4, with_masks=True, make=serializer.new_batch)
        made: list[bytes] = []
        for event in self.events:
            values = extractor.extract(event)
            assert values is not None
            for batch in batcher.add(event, values):
                made += [message.tobytes() for message in serializer.messages(batch)]
        for batch in batcher.finish():
            made += [message.tobytes() for message in serializer.messages(batch)]
        return made

    @property
    def hits(self) -> list[bool]:
        return [bool(event.read("truth", "hit")) for event in self.events]

    @property
    def tally(self) -> Tally:
        tally = Tally()
        for message in self.messages:
            tally.add(message)
        return tally
