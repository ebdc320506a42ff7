"""A process at a facility that sends messages: as they are given, over a socket of any kind."""

import threading
from contextlib import contextmanager

import zmq


@contextmanager
def serving(kind, messages, port=None, pause=0.02):
    """A server of our own making: REP, PUB or PUSH, one message after the other, then silence."""
    context, stopping = zmq.Context(), threading.Event()
    socket = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.bind(f"tcp://127.0.0.1:{port or 0}")
    port = int(socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])

    def run():
        for parts in messages:
            while not stopping.is_set():
                if kind == zmq.REP:
                    if not socket.poll(50):
                        continue
                    socket.recv()
                elif not socket.poll(50, zmq.POLLOUT):
                    continue
                socket.send_multipart(parts)
                break
            stopping.wait(pause)
        stopping.wait()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield f"tcp://127.0.0.1:{port}"
    finally:
        stopping.set()
        thread.join()
        socket.close()
        context.destroy()
