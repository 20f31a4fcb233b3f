//! The routes: one file a verb or resource, and the list of them all.

mod audit;
mod commits;
mod devices;
mod group_infos;
mod health;
mod inventory;
mod links;
mod log;
mod messages;
mod metrics;
mod release;
mod reserve;
mod revoke;
mod server;
mod spend;
mod status;
mod upload;

use utoipa_actix_web::service_config::ServiceConfig;

/// Registers every route, and puts it into the OpenAPI document.
///
/// actix compares a request with the routes in this order, and compares a route with a variable part by a regular
/// expression: the routes of the most requests come first, those with variable parts last.
pub(crate) fn register(config: &mut ServiceConfig<'_>) {
    config
        .service(reserve::reserve_key_packages)
        .service(spend::spend_reservation)
        .service(status::get_pool_status)
        .service(upload::upload_key_packages)
        .service(messages::fetch_messages)
        .service(messages::acknowledge_messages)
        .service(health::get_health)
        .service(health::get_readiness)
        .service(metrics::get_metrics)
        .service(server::get_server)
        .service(release::release_reservation)
        .service(revoke::revoke_key_packages)
        .service(inventory::list_inventory)
        .service(audit::list_audit_events)
        .service(log::get_log)
        .service(log::get_newest_checkpoint)
        .service(log::prove_steps)
        .service(log::compare_checkpoint)
        .service(status::list_low_pools)
        .service(devices::register_device)
        .service(devices::list_devices)
        .service(devices::lookup_devices)
        .service(devices::change_device_token)
        .service(links::make_device_link)
        .service(links::list_device_links)
        .service(devices::remove_device)
        .service(devices::remove_user_device)
        .service(status::get_user_pool_status)
        .service(group_infos::list_groups)
        .service(commits::send_commit)
        .service(messages::send_message)
        .service(group_infos::get_group_info)
        .service(group_infos::keep_group_info)
        .service(log::get_checkpoint)
        .service(log::get_tile);
}
