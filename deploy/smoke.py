"""A verification, a login, a payment and a callback, against a BFF that is wired to the sandbox.

Runs in the sandbox's container, with nothing but Python:  python - BFF_URL < deploy/smoke.py
With `--until-stopped` a call is in flight and others come while somebody stops the BFF.
"""

import argparse
import json
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

CONTROL = "http://127.0.0.1:9480/control"
CALLERS = 10
PATIENCE = 60


def call(url: str, body: object = None, *, bearer: str | None = None) -> Any:  # noqa: ANN401 - JSON
    """POST when there is a body. Raises: OSError, also for an answer that is no success."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {bearer}"} if bearer else {})
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=PATIENCE) as answer:  # noqa: S310 - addresses of ours
        return json.load(answer)


def control(path: str, **body: object) -> Any:  # noqa: ANN401 - JSON
    return call(f"{CONTROL}/{path}", body)


def verify(bff: str) -> tuple[str, str]:
    """Address of a finished verification's result, and its token."""
    started = call(f"{bff}/api/v1/cert/requests", {"requestType": "USER_NONE"})
    control(f"transactions/{started['txId']}/approve")
    return f"{bff}/api/v1/cert/requests/{started['txId']}/result", started["verificationToken"]


def flows(bff: str) -> None:
    url, token = verify(bff)
    assert call(url, {}, bearer=token)["outcome"]["ageGroup"] == "ADULT"
    print("verification: ok")

    handed = control("users/man/login")
    login = {name: handed[name] for name in ("authorizationCode", "referrer")}
    session = call(f"{bff}/api/v1/login", login)["sessionToken"]
    print("login: ok")

    begun = call(f"{bff}/api/v1/payments", {"productId": "americano"}, bearer=session)
    control(f"pay/{begun['payToken']}/authenticate")
    paid = call(f"{bff}/api/v1/payments/{begun['orderNo']}/execute", {}, bearer=session)
    assert (paid["state"], paid["amount"]) == ("PAID", 4500)
    print("payment: ok")

    sku = call(f"{CONTROL}/iap/products")[1]["sku"]
    order = control("iap/subscriptions", user="man", sku=sku)["orderId"]
    assert call(f"{bff}/api/v1/purchases/{order}/grant", {}, bearer=session)["state"] == "GRANTED"
    (delivery,) = control(f"iap/{order}/transition", reason="CREATED")["deliveries"]
    assert delivery["status"] == 200, delivery
    print("callback: ok")


def until_stopped(bff: str) -> None:
    """A call that Toss holds is answered although the BFF has been told to stop; nobody else is refused by it."""
    host = urllib.parse.urlsplit(bff)
    # Looked up once: an engine that stops a container may be slow to answer for its name.
    bff = f"http://{socket.gethostbyname(host.hostname or '')}:{host.port or 80}"
    url, token = verify(bff)
    control("faults", call="result", kind="hold")
    held: list[dict[str, Any]] = []
    holding = threading.Thread(target=lambda: held.append(call(url, {}, bearer=token)))
    holding.start()
    while not call(f"{CONTROL}/state")["held"]:
        time.sleep(0.1)
    answered = [0] * CALLERS
    is_refused = threading.Event()

    def keep_calling(number: int) -> None:
        while True:
            try:
                call(f"{bff}/livez")
            except urllib.error.HTTPError:
                raise
            except OSError:
                is_refused.set()
                return
            answered[number] += 1

    callers = [threading.Thread(target=keep_calling, args=(number,)) for number in range(CALLERS)]
    for caller in callers:
        caller.start()
    print("calling", flush=True)
    assert is_refused.wait(PATIENCE)
    control("faults/release")
    holding.join(PATIENCE)
    for caller in callers:
        caller.join()
    assert held[0]["outcome"]["ageGroup"] == "ADULT"
    print(f"stop: ok, {sum(answered)} calls answered before it, the one in flight after it")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bff")
    parser.add_argument("--until-stopped", action="store_true")
    options = parser.parse_args()
    (until_stopped if options.until_stopped else flows)(options.bff)
