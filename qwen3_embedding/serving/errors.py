"""What a request can run into. Each carries its HTTP status; the dialect of the route words the body."""

from __future__ import annotations

from qwen3_embedding.errors import Qwen3EmbeddingError


class ServingError(Qwen3EmbeddingError):
    """Root: ``status`` is the HTTP status, ``kind`` a stable name, ``param`` the field at fault, if one is."""

    status = 500
    kind = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class BadRequestError(ServingError):
    """The request is malformed, or asks for something that is not there."""

    status = 400
    kind = "invalid_request"


class EmptyInputError(BadRequestError):
    """There is nothing to compute."""

    kind = "empty_input"


class TooLongError(BadRequestError):
    """A text is longer than the model's context and the truncation policy is ``error``."""

    kind = "input_too_long"


class UnauthorizedError(ServingError):
    """No key, or one that is not known."""

    status = 401
    kind = "unauthorized"


class UnknownModelError(ServingError):
    """The operator did not name such a model."""

    status = 404
    kind = "model_not_found"


class NoSuchRouteError(ServingError):
    """No such path, or not with this method."""

    status = 404
    kind = "not_found"


class RequestTimeoutError(ServingError):
    """The body did not arrive in time."""

    status = 408
    kind = "request_timeout"


class TooLargeError(ServingError):
    """The body, the number of items or the tokens of one request pass the server's limits; a retry will not help."""

    status = 413
    kind = "request_too_large"


class OverloadedError(ServingError):
    """The queue is full, or a key's quota is spent. Try again after ``retry_after_s``."""

    status = 429
    kind = "overloaded"


class ClientGoneError(ServingError):
    """The client left before the answer was there (logged; nobody reads the body)."""

    status = 499
    kind = "client_closed_request"


class ComputeError(ServingError):
    """The model failed on this request's input."""

    status = 500
    kind = "compute_error"


class UnavailableError(ServingError):
    """The server is starting or draining, or its worker died. Try again after ``retry_after_s``."""

    status = 503
    kind = "unavailable"


class DeadlineError(ServingError):
    """The deadline passed before the result was there."""

    status = 504
    kind = "deadline_exceeded"
