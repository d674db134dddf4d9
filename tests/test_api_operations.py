"""Reviews answers and promotes adapters over HTTP: whose decision it is, and whom it overrules."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx

from feedback.review.decisions import decision_on
from tests.fakes.scripted_engine import new_adapter
from tests.fixtures.access_server import AccessServer
from tests.fixtures.api_client import read_error
from tests.fixtures.conversations import SPEAKER, add_answer, add_edit


def test_decisions_are_kept_with_the_name_of_the_key(access_server: AccessServer) -> None:
    correction = {"action": "correct", "answer": "At ten."}
    access_server.ask("reviewer", "POST", "/v1/reviews/ANSWER", correction)
    access_server.ask("operator", "POST", "/v1/adapters/ADAPTER/promote", {"reason": "better"})
    decision = decision_on(access_server.service.store, access_server.names["ANSWER"])
    assert decision is not None and decision.reviewer == "the reviewer"
    newest = access_server.service.registry.history()[0]
    assert (newest.by, newest.who, newest.reason) == ("person", "the operator", "better")


def test_reviews_go_on_over_http(access_server: AccessServer) -> None:
    bearer = access_server.bearer("reviewer")
    review = access_server.http.get("/v1/reviews/next", headers=bearer).json()
    message, proposed = review["item"]["message_id"], review["item"]["proposed"]
    assert (review["waiting"], proposed) == (1, "A secret edit")
    approval = {"action": "approve", "answer": proposed, "note": "yes"}
    stored = access_server.http.post(f"/v1/reviews/{message}", json=approval, headers=bearer).json()
    assert (stored["answer"], stored["reviewer"], stored["note"]) == (
        proposed,
        "the reviewer",
        "yes",
    )
    review = access_server.http.get("/v1/reviews/next", headers=bearer).json()
    assert review == {"waiting": 0, "item": None}
    stale = {"action": "approve", "answer": "At noon."}
    assert (
        access_server.http.post(f"/v1/reviews/{message}", json=stale, headers=bearer).status_code
        == 400
    )
    nobody = access_server.http.post("/v1/reviews/msg-none", json=stale, headers=bearer)
    assert read_error(nobody)[0] == 404
    unknown = access_server.http.post(
        f"/v1/reviews/{message}", json={"action": "no"}, headers=bearer
    )
    assert read_error(unknown)[1]["param"] == "action"


def test_a_decision_over_http_overrules_nobody_unknowingly(access_server: AccessServer) -> None:
    reviewer, operator = access_server.bearer("reviewer"), access_server.bearer("operator")
    store = access_server.service.store
    cut = replace(SPEAKER, finish="length")
    message = add_answer(store, "When do you open?", "From nine to", speaker=cut)
    for person, text in (("bob", "At eight."), ("ann", "At nine.")):
        add_edit(store, message, text, person)
    path = f"/v1/reviews/{message}"
    seen = access_server.http.get("/v1/reviews/next", headers=operator).json()["item"]
    edits = [(edit["text"], edit["people"]) for edit in seen["edits"]]
    assert edits == [("At eight.", ["bob"]), ("At nine.", ["ann"])]
    assert (seen["disagree"], seen["finish"]) == (True, "length")
    correction = {"action": "correct", "answer": "At ten.", "seen": seen["version"]}
    assert access_server.http.post(path, json=correction, headers=reviewer).status_code == 200
    for body in ({"action": "reject", "seen": seen["version"]}, {"action": "reject"}):
        status, error = read_error(access_server.http.post(path, json=body, headers=operator))
        assert (status, error["code"], error["param"]) == (409, "changed_since_seen", "seen")
        assert 'the reviewer corrected it to "At ten." on 20' in error["message"]
    now = access_server.http.get(path, headers=operator).json()
    assert now["decision"]["answer"] == "At ten."
    body = {"action": "reject", "seen": now["version"]}
    assert (
        access_server.http.post(path, json=body, headers=operator).json()["reviewer"]
        == "the operator"
    )


def test_a_promotion_over_http_overrules_neither_the_gate_nor_another_unknowingly(
    access_server: AccessServer,
) -> None:
    service, bearer = access_server.service, access_server.bearer("operator")
    adapter, before = new_adapter(service, seed=8), service.registry.promotion()
    service.registry.add_report(
        "rep-8", adapter=adapter, against="a-0", verdict="refuse", reasons=["It forgets."]
    )
    seen = access_server.http.get("/v1/adapters", headers=bearer).json()["promotion"]
    body, path = {"reason": "for a look", "seen": seen}, f"/v1/adapters/{adapter}/promote"
    status, error = read_error(access_server.http.post(path, json=body, headers=bearer))
    assert (status, error["code"]) == (409, "confirmation_required")
    assert "It forgets." in error["message"]
    assert service.registry.promotion() == before
    made = access_server.http.post(path, json={**body, "confirm": True}, headers=bearer).json()
    assert (made["who"], made["reason"]) == ("the operator", "for a look")
    for again in (path, "/v1/adapters/rollback"):
        answer = access_server.http.post(again, json={**body, "confirm": True}, headers=bearer)
        status, error = read_error(answer)
        assert (status, error["code"]) == (409, "changed_since_seen")
        assert f"the operator promoted {adapter} on 20" in error["message"]


def test_a_rollback_that_is_sent_twice_goes_one_step_back(access_server: AccessServer) -> None:
    bearer, registry = access_server.bearer("operator"), access_server.service.registry
    first, second, third = (new_adapter(access_server.service, seed=seed) for seed in (20, 21, 22))
    for adapter in (first, second, third):
        registry.promote(adapter, "gate", "gate", "better")

    def roll_back(**seen: str) -> httpx.Response:
        body = {"reason": "too terse", **seen}
        url = f"{access_server.http.base_url}/v1/adapters/rollback"
        return httpx.post(url, json=body, headers=bearer, timeout=60)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: roll_back(), range(4)))
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409]
    assert registry.history()[0].adapter == second
    status, error = read_error(roll_back())
    assert (status, error["code"], error["param"]) == (409, "changed_since_seen", "seen")
    newest = registry.history()[0].id
    assert (
        f"the operator promoted {second} on 20" in error["message"] and newest in error["message"]
    )
    assert roll_back(seen=newest).json()["adapter"] == first
    registry.promote(third, "person", "otto", "after all")
    assert roll_back().json()["adapter"] == first, "what was promoted by hand is left as before"


def test_promotions_over_http_are_followed_and_mistakes_told(access_server: AccessServer) -> None:
    bearer, registry = access_server.bearer("operator"), access_server.service.registry
    adapter = new_adapter(access_server.service, seed=7)
    why = {"reason": "reads better"}
    made = access_server.http.post(
        f"/v1/adapters/{adapter}/promote", json=why, headers=bearer
    ).json()
    assert (made["adapter"], made["reason"]) == (adapter, "reads better")
    access_server.service.rollout.follow()
    listed = access_server.http.get("/v1/adapters", headers=bearer).json()
    assert listed["speaking"] == adapter
    assert [one["id"] for one in listed["adapters"] if one["speaking"]] == [adapter]
    before = len(registry.history())
    for path, body, status in (
        ("a-none/promote", why, 404),
        (f"{adapter}/promote", {"reason": " "}, 400),
        (f"{adapter}/promote", {}, 400),
        ("rollback", {}, 400),
    ):
        answer = access_server.http.post(f"/v1/adapters/{path}", json=body, headers=bearer)
        assert read_error(answer)[0] == status
    assert len(registry.history()) == before


def test_the_api_document_knows_what_is_sent(access_server: AccessServer) -> None:
    document = access_server.http.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert {"NextReview", "ReviewRequest", "Decision", "Adapters", "Promotion"} <= set(schemas)
    answer = document["paths"]["/v1/adapters"]["get"]["responses"]
    assert answer["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/Adapters")
