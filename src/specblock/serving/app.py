"""The routes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from specblock.errors import SpecBlockError
from specblock.own import Own
from specblock.serving.api.errors import ApiError, as_api_error
from specblock.serving.api.requests import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    parse,
)
from specblock.serving.api.responses import Chat, Completion
from specblock.serving.decoding.pieces import Piece, ServedAnswer
from specblock.serving.decoding.reading import Reading
from specblock.serving.http.body import read_body
from specblock.serving.http.guards import HostGuard, Keys
from specblock.serving.http.stream import DONE, EventStream, event
from specblock.serving.page import Page
from specblock.serving.service import Service, no_such_model
from specblock.serving.watching.status import status

__all__ = ["make_app"]


def make_app(service: Service, keys: Keys) -> FastAPI:
    """The application; its lifespan starts and stops the service."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield

    app = FastAPI(
        lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False
    )
    app.include_router(_open_routes(service, Page()))
    guarded = APIRouter(dependencies=[Depends(_key_check(keys))])
    _add_figures(guarded, service)
    _add_models(guarded, service)
    _add_generation(guarded, service)
    app.include_router(guarded)
    app.add_middleware(HostGuard, host=service.config.host, guarded=service.config.loopback)
    for kind in (ApiError, SpecBlockError, Exception):
        app.add_exception_handler(kind, _say)
    app.add_exception_handler(HTTPException, _say_http)
    return app


def _key_check(keys: Keys):
    async def check(request: Request) -> None:
        keys.check(request)

    return check


async def _say(_: Request, error: Exception) -> JSONResponse:
    said = as_api_error(error)
    return JSONResponse(said.body, said.status, said.headers)


async def _say_http(_: Request, error: HTTPException) -> JSONResponse:
    said = ApiError(error.status_code, f"{error.detail}.")
    return JSONResponse(said.body, said.status, error.headers)


def _open_routes(service: Service, page: Page) -> APIRouter:
    routes = APIRouter()

    @routes.get("/")
    async def index() -> Response:
        policy = {"Content-Security-Policy": page.policy, "Referrer-Policy": "no-referrer"}
        return Response(page.content, media_type="text/html", headers=policy)

    @routes.get("/health")
    async def health() -> JSONResponse:
        if service.stopping:
            return JSONResponse({"status": "stopping"}, 503)
        return JSONResponse({"status": "ok"})

    return routes


def _add_figures(routes: APIRouter, service: Service) -> None:
    @routes.get("/metrics")
    async def metrics() -> Response:
        return Response(service.watch.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @routes.get("/status")
    async def figures() -> JSONResponse:
        return JSONResponse(status(service.speculator, service.watch, service.model))


def _add_models(routes: APIRouter, service: Service) -> None:
    @routes.get("/v1/models")
    async def models() -> JSONResponse:
        return JSONResponse({"object": "list", "data": [service.model_object()]})

    @routes.get("/v1/models/{name:path}")
    async def model(name: str) -> JSONResponse:
        if name != service.model:
            raise no_such_model(name)
        return JSONResponse(service.model_object())


def _add_generation(routes: APIRouter, service: Service) -> None:
    @routes.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await _answer(service, request, ChatRequest, Chat)

    @routes.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await _answer(service, request, CompletionRequest, Completion)


async def _answer(
    service: Service, request: Request, kind: type[GenerationRequest], form: type[Chat]
) -> Response:
    most = int(service.config.max_body_mib * 2**20)
    body = await read_body(request, most, service.config.stalled_seconds)
    asked = parse(kind, body)
    reading = await service.ask(asked, request)
    made = form(service.model, reading.answers, asked.n, service.spell, service.max_nodes)
    try:
        if not asked.stream:
            whole = await _whole(reading, made)
            service.close(reading)
            return whole
        pieces = reading.pieces()
        first = await anext(pieces)  # what is refused until then has a status of its own
    except BaseException:
        service.close(reading)
        raise
    events = _events(first, pieces, made, usage=asked.options.include_usage)
    return EventStream(events, lambda: service.close(reading))


async def _whole(reading: Reading, made: Chat) -> JSONResponse:
    pieces: defaultdict[ServedAnswer, list[Piece]] = defaultdict(list)
    async for answer, piece in reading.pieces():
        pieces[answer].append(piece)
    return JSONResponse(made.whole(pieces))


async def _events(
    first: tuple[ServedAnswer, Piece],
    rest: AsyncIterator[tuple[ServedAnswer, Piece]],
    made: Chat,
    *,
    usage: bool,
) -> AsyncIterator[bytes]:
    yield event(made.chunk(*first))
    with Own() as own:
        async for found in rest:
            yield event(made.chunk(*found))
    if own.error is not None:
        yield event(as_api_error(own.error).body)
        return
    if usage:
        yield event(made.last())
    yield DONE
