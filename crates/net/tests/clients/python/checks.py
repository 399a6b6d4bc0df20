"""What nats-py is tried with."""

import asyncio
import os
import sys
import traceback

import nats
from nats.errors import MaxPayloadError, NoRespondersError

SOON = 20
PREFIX = os.environ["ATOLL_INBOX_PREFIX"]


async def connect(**more):
    return await nats.connect(
        os.environ["ATOLL_BUS"],
        token=os.environ["ATOLL_TOKEN"],
        inbox_prefix=PREFIX.encode(),
        reconnect_time_wait=0.05,
        max_reconnect_attempts=-1,
        **more,
    )


class Checks:
    async def connect(self):
        self.back, self.closed = asyncio.Event(), asyncio.Event()

        async def reconnected():
            self.back.set()

        async def closed():
            self.closed.set()

        self.nc = await connect(reconnected_cb=reconnected, closed_cb=closed)
        await self.nc.flush()

    async def echo(self, text):
        answer = await self.nc.request("svc.echo", text, timeout=SOON)
        assert answer.data == text and answer.subject.startswith(PREFIX + "."), answer

    async def requests(self):
        await self.echo(b"hello")
        # and the other way round: this client answers
        async def answer_it(message):
            await message.respond(message.data)

        service = await self.nc.subscribe("t.service", cb=answer_it)
        asker = await connect()
        await self.nc.flush()
        answers = await asyncio.gather(*(asker.request("t.service", text, timeout=SOON) for text in (b"a", b"b", b"c")))
        assert [answer.data for answer in answers] == [b"a", b"b", b"c"], answers
        await asker.close()
        await service.unsubscribe()

    async def queue_groups(self):
        counts = {"one": 0, "other": 0}

        def count(name):
            async def callback(_):
                counts[name] += 1

            return callback

        subscriptions = [
            await self.nc.subscribe("t.queue", queue="q", cb=count("one")),
            await self.nc.subscribe("t.*", queue="q", cb=count("one")),
            await self.nc.subscribe("t.queue", cb=count("other")),
        ]
        for _ in range(50):
            await self.nc.publish("t.queue")
        # this client's PING, on which its drain relies, overtakes what it publishes; a request doesn't
        await self.echo(b"all there")
        for subscription in subscriptions:
            await subscription.drain()
        assert counts == {"one": 50, "other": 50}, counts

    async def headers(self):
        answer = await self.nc.request("svc.echo", headers={"Kind": "a", "Text": "x y"}, timeout=SOON)
        assert answer.headers == {"Kind": "a", "Text": "x y"}, answer.headers

    async def no_responders(self):
        try:
            await self.nc.request("t.nobody", timeout=SOON)
        except NoRespondersError:
            return
        raise AssertionError("nobody answers, and it isn't said")

    async def large_payloads(self):
        most = self.nc.max_payload
        payload = bytes(at * 31 % 256 for at in range(most))
        subscription = await self.nc.subscribe("t.large")
        await self.nc.publish("t.large", payload)
        message = await subscription.next_msg(timeout=SOON)
        assert message.data == payload, len(message.data)
        try:
            await self.nc.publish("t.large", payload + b"x")
        except MaxPayloadError:
            pass
        else:
            raise AssertionError("too large a message was taken")
        await self.echo(b"still here")

    async def reconnect(self):
        subscriptions = [await self.nc.subscribe("t.again"), await self.nc.subscribe("t.again", queue="q")]
        await self.nc.publish("control.restart")
        await self.back.wait()
        await self.nc.publish("t.again", b"after")
        for subscription in subscriptions:
            message = await subscription.next_msg(timeout=SOON)
            assert message.data == b"after", message
        await self.echo(b"new bus")

    async def drain(self):
        count = 0

        async def callback(_):
            nonlocal count
            count += 1

        await self.nc.subscribe("t.drain", cb=callback)
        await self.nc.flush()
        for _ in range(1000):
            await self.nc.publish("t.drain", b"x" * 100)
        await self.echo(b"all there")
        await self.nc.drain()
        await self.closed.wait()
        assert count == 1000 and self.nc.is_closed, count


async def main():
    checks = Checks()
    for name in ("connect", "requests", "queue groups", "headers", "no responders", "large payloads", "reconnect", "drain"):
        try:
            await asyncio.wait_for(getattr(checks, name.replace(" ", "_"))(), SOON)
        except Exception:
            print(f"failed {name}: {traceback.format_exc()}", flush=True)
            sys.exit(1)
        print(f"ok {name}", flush=True)


asyncio.run(main())
