//! Images that aren't there, and pulls.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use atoll_contract::ErrorCode;
use atoll_host::runtime::{ContainerSpec, ProgressFn, Runtime};
use tokio_util::sync::CancellationToken;

use crate::support::Host;

#[tokio::test]
async fn images_that_are_not_there() {
    let Some(host) = Host::new("images_that_are_not_there").await else { return };
    let phases: Arc<Mutex<Vec<String>>> = Arc::default();
    let said = phases.clone();
    let progress: ProgressFn = Arc::new(move |progress| said.lock().unwrap().push(progress.phase));
    let ensure = |image: &'static str| host.runtime.ensure_image(image, progress.clone(), CancellationToken::new());
    host.runtime.ensure_image(&host.image, progress.clone(), CancellationToken::new()).await.unwrap();
    assert!(phases.lock().unwrap().is_empty(), "nothing is pulled that is there");
    for image in ["localhost/atoll-none:1", "atoll-no-such-short-name", "127.0.0.1:9/none:1", "UPPER/case", "a:b:c"] {
        let error = ensure(image).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::ImageUnavailable, "{image}: {error:?}");
        assert!(!error.mend.is_empty() && error.message.contains(image), "{error:?}");
    }
    assert!(phases.lock().unwrap().iter().any(|phase| phase == "pulling 127.0.0.1:9/none:1"));
    let spec = ContainerSpec { image: "localhost/atoll-none:1".into(), ..host.spec(1, 1) };
    assert_eq!(host.start(&spec).await.unwrap_err().code, ErrorCode::ImageUnavailable, "a start never pulls");
    assert!(host.runtime.list().await.unwrap().is_empty());
    let cancel = CancellationToken::new();
    cancel.cancel();
    assert_eq!(host.runtime.ensure_image("127.0.0.1:9/none:2", progress, cancel.clone()).await.unwrap_err().code, ErrorCode::Cancelled);
    assert_eq!(host.runtime.ensure_running(&host.spec(1, 1), cancel).await.unwrap_err().code, ErrorCode::Cancelled);
    assert!(host.runtime.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_pull_ends_when_it_is_cancelled() {
    let Some(host) = Host::new("a_pull_ends_when_it_is_cancelled").await else { return };
    // a registry that takes connections and never says a word
    let registry = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let image = format!("{}/none:1", registry.local_addr().unwrap());
    let cancel = CancellationToken::new();
    let token = cancel.clone();
    let runtime = host.runtime.clone();
    let pull = tokio::spawn(async move { runtime.ensure_image(&image, Arc::new(|_| ()), token).await });
    let _connection = tokio::time::timeout(Duration::from_secs(20), registry.accept()).await.unwrap().unwrap();
    cancel.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(10), pull).await.unwrap().unwrap();
    assert_eq!(ended.unwrap_err().code, ErrorCode::Cancelled);
}
