"""
ModelService: one handler per method.

Owns paging. There is one model today; the page token is an offset, which stays opaque to callers.
"""

# ruff: noqa: N802, ARG002 - names and arguments of the handlers are the contract's
from __future__ import annotations

import base64
import binascii

from edgephi.engine.request import SamplingParams
from edgephi.errors import FieldViolation, InvalidRequest, ModelNotFound
from edgephi.server import describe
from edgephi.server.calls import Context
from edgephi.server.lifecycle import Lifecycle
from edgephi.server.limits import violations
from edgephi.server.model_info import COLLECTION, ModelInfo
from edgephi.v1 import model_service_pb2 as pb2
from edgephi.v1.model_service_pb2_grpc import ModelServiceServicer

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000
_TOKEN_PREFIX = b"offset:"


class ModelHandler(ModelServiceServicer):
    """
    Describes the served models. Lives as long as its server.

    Args:
        models: All of them, at least one; the first is the one that answers.
        lifecycle: Says what the server is doing.
        defaults: Sampling where a request names none.
    """

    def __init__(self, models: tuple[ModelInfo, ...], lifecycle: Lifecycle, defaults: SamplingParams) -> None:
        self._models = tuple(sorted(models, key=lambda model: model.name))
        self._lifecycle = lifecycle
        self._defaults = defaults

    async def ListModels(self, request: pb2.ListModelsRequest, context: Context) -> pb2.ListModelsResponse:
        """List the models in order of name."""
        found = violations(request)
        offset = _offset(request.page_token)
        if offset is None or offset > len(self._models):
            found.append(FieldViolation("page_token", "is not one this server gave; send next_page_token or nothing"))
        if found or offset is None:
            raise InvalidRequest(*found)
        end = offset + min(request.page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        models = (self._message(model) for model in self._models[offset:end])
        token = _token(end) if end < len(self._models) else ""
        return pb2.ListModelsResponse(models=models, next_page_token=token)

    async def GetModel(self, request: pb2.GetModelRequest, context: Context) -> pb2.GetModelResponse:
        """Describe one model."""
        found = violations(request)
        if not found and not request.name.startswith(COLLECTION):
            found.append(FieldViolation("name", f"must be {COLLECTION} and the model's id"))
        if found:
            raise InvalidRequest(*found)
        for model in self._models:
            if model.name == request.name:
                return pb2.GetModelResponse(model=self._message(model))
        raise ModelNotFound(f"model {request.name!r} is not on this server; ListModels names those that are")

    def _message(self, model: ModelInfo) -> pb2.Model:
        return describe.model_message(model, self._lifecycle.state, self._defaults)


def _token(offset: int) -> str:
    return base64.urlsafe_b64encode(_TOKEN_PREFIX + str(offset).encode()).decode()


def _offset(token: str) -> int | None:
    """Return the offset a page token stands for, or None if it is not one of ours."""
    if not token:
        return 0
    try:
        data = base64.b64decode(token.encode(), altchars=b"-_", validate=True)
    except binascii.Error:
        return None
    digits = data.removeprefix(_TOKEN_PREFIX)
    return int(digits) if digits != data and digits.isdigit() and len(digits) <= 9 else None
