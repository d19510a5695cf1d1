//! What every store must do: one suite over the library, run on a directory, in memory and on S3.

mod stores;
mod suite;

/// The whole suite, once for each store.
macro_rules! conforms {
    ($($store:ident),*) => {$(
        mod $store {
            use crate::{stores, suite};

            conforms!(@tests $store:
                making_a_repository_twice_changes_nothing,
                an_object_is_created_once_and_never_replaced,
                of_creators_at_the_same_time_one_wins,
                streams_of_critical_lengths_come_back,
                a_long_stream_is_sent_in_parts_of_one_size,
                any_range_can_be_read_alone,
                several_streams_of_several_volumes_come_back,
                listings_show_what_is_complete_in_order,
                a_running_backup_is_unfinished_and_cannot_be_restored,
                only_manifest_and_volumes_stay,
                a_source_that_fails_leaves_nothing,
                a_cancelled_backup_leaves_nothing,
                a_backup_cancelled_at_any_moment_leaves_nothing,
                a_dropped_handle_leaves_nothing,
                a_prune_leaves_the_newest_and_nothing_of_what_is_too_old,
                a_missing_volume_is_found,
                a_volume_cannot_be_put_in_the_place_of_another,
                what_does_not_exist_is_not_found
            );
        }
    )*};
    (@tests $store:ident: $($test:ident),*) => {$(
        #[tokio::test]
        async fn $test() {
            suite::$test(&stores::$store().await).await;
        }
    )*};
}

conforms!(directory, memory, s3);
