//! Who may do what on the local API, and what readiness says.
use super::*;

#[test]
fn queries_are_decoded() {
    let path: PathAndQuery = "/why?src=shop%2Fweb&dst=orders.shop.mesh%3A80&x".parse().expect("a path");
    let query = query(&path);
    assert_eq!(query.get("src").map(String::as_str), Some("shop/web"));
    assert_eq!(query.get("dst").map(String::as_str), Some("orders.shop.mesh:80"));
}

#[test]
fn refusals_have_a_code_for_programs() {
    let body = refused(StatusCode::CONFLICT, "there is nothing to confirm").body;
    let body: ErrorBody = serde_json::from_slice(&body).expect("an error body");
    assert_eq!((body.code.as_str(), body.message.as_str()), ("conflict", "there is nothing to confirm"));
}
