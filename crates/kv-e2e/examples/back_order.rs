//! Runs the example `kv_e2e::examples::back_order`, whose text explains it, on the cluster that `KVCTL_ENDPOINTS` names or on a
//! `kvnode dev`.

use kv_e2e::examples::{Names, back_order, conclude, connect};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let client = connect().await?;
    let report = back_order::run(&client, &Names::random()).await?;
    client.close().await?;
    conclude(&report)
}
