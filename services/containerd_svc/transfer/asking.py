"""Credentials of a client, asked for over a stream of its own (AuthRequest, AuthResponse)."""

from __future__ import annotations

import asyncio

import errdefs
from pb.containerd.types.transfer import AuthRequest, AuthResponse, AuthType

from containerd_svc.registry.credentials import Ask, Credentials, Question
from containerd_svc.transfer.streams import Stream

_ANSWERS = 30.0  # seconds


def over(stream: Stream) -> Ask:
    """Ask at the other end of the stream. What cannot be answered is asked for as anybody."""
    one_at_a_time = asyncio.Lock()

    async def ask(question: Question) -> Credentials:
        async with one_at_a_time:
            await stream.send(
                AuthRequest(
                    host=question.host,
                    reference=question.reference,
                    wwwauthenticate=list(question.challenges),
                )
            )
            try:
                answer = await asyncio.wait_for(stream.receive(), _ANSWERS)
            except TimeoutError:
                raise errdefs.Unavailable("the client does not answer who it is: unavailable") from None
        if answer is None:
            raise errdefs.Unavailable("the client does not answer who it is: unavailable")
        if not isinstance(answer, AuthResponse):
            raise errdefs.InvalidArgument(f"{type(answer).__name__} is no AuthResponse: invalid argument")
        match answer.auth_type:
            case AuthType.CREDENTIALS:
                return Credentials(username=answer.username, password=answer.secret)
            case AuthType.REFRESH:
                return Credentials(refresh_token=answer.secret)
            case AuthType.HEADER:
                return Credentials(header=answer.secret)
        return Credentials()

    return ask
