//! A stream of messages, whichever pod of dialog-api holds it and whichever takes the messages.

use std::time::{Duration, Instant};

use acceptance::conversation::Service;
use anyhow::{Context as _, Result, ensure};
use dialog_operator::names::{API_PORT, CLUSTER_LABEL};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams};
use serde_json::json;
use tokio::task::block_in_place;

use crate::bed::{Bed, CLUSTER};
use crate::forward::Forward;

/// A stream that nobody tells anything reads its dialog every 5 s. Most messages are far quicker.
const TOLD: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_has_what_another_pod_takes_and_goes_on_at_another_pod() -> Result<()> {
    let bed = Bed::new("streams").await?;
    bed.create(0, |spec| spec["api"]["replicas"] = json!(2)).await?;
    bed.ready().await?;
    let labels = format!("{CLUSTER_LABEL}={CLUSTER},app.kubernetes.io/component=api");
    let pods = bed.all::<Pod>().list(&ListParams::default().labels(&labels)).await?;
    let names: Vec<_> = pods.iter().map(kube::ResourceExt::name_any).collect();
    let [holder, taker] = &names[..] else { anyhow::bail!("the pods of dialog-api are {names:?}") };
    let forwards = [Forward::to(&bed, holder, API_PORT)?, Forward::to(&bed, taker, API_PORT)?];
    let [holding, taking] =
        forwards.each_ref().map(|forward| Service::new(format!("127.0.0.1:{}", forward.port()), CLUSTER));

    let (ada, grace, last) = block_in_place(|| -> Result<_> {
        let (ada, grace) = (taking.register("Ada", "Lovelace")?, taking.register("Grace", "Hopper")?);
        let mut stream = holding.stream(&grace, &ada, None)?;
        let (mut times, mut last) = (Vec::new(), None);
        for number in 0..5 {
            let text = format!("message {number}");
            taking.send(&ada, &grace, &text)?;
            let sent = Instant::now();
            let event = stream.event()?.context("the stream has ended")?;
            ensure!(event.message.text == text, "after {text:?} came {event:?}");
            times.push(sent.elapsed());
            last = Some(event.id);
        }
        times.sort_unstable();
        bed.say(format!("messages from one pod to a stream at the other take {times:.1?}"));
        ensure!(times[times.len() / 2] < TOLD, "the pods do not tell each other: {times:?}");
        Ok((ada, grace, last.context("no event")?))
    })?;

    bed.all::<Pod>().delete(holder, &DeleteParams::default()).await?;
    block_in_place(|| -> Result<()> {
        taking.send(&ada, &grace, "meanwhile")?;
        let mut stream = taking.stream(&grace, &ada, Some(&last))?;
        let event = stream.event()?.context("the stream has ended")?;
        ensure!(event.message.text == "meanwhile", "after {last} comes {event:?}");
        Ok(())
    })?;
    bed.ready().await?;
    bed.done();
    Ok(())
}
