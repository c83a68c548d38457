//! Runs the example `kv_e2e::examples::last_item`, whose text explains it, on the cluster that `KVCTL_ENDPOINTS` names or on a
//! `kvnode dev`.

use kv_e2e::examples::{Names, conclude, connect, last_item};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let client = connect().await?;
    let report = last_item::run(&client, &Names::random()).await?;
    client.close().await?;
    conclude(&report)
}
