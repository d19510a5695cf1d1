//! What every store must do: one suite over the library, and one with the program, each run on every store.
//!
//! A store is added by a line in `stores.rs`, that says how it is started, and its name in the lists below.

mod program;
mod stores;
mod suite;

/// Has a macro called with all demands of the suite.
macro_rules! all_demands {
    ($call:ident $($store:ident)*) => {
        $call! { [$($store)*]
            making_a_repository_twice_changes_nothing,
            an_object_is_created_once_and_never_replaced,
            of_creators_at_the_same_time_one_wins,
            streams_of_critical_lengths_come_back,
            a_long_stream_is_sent_in_parts_of_one_size,
            any_range_can_be_read_alone,
            listings_begin_behind_their_offset,
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
            a_copy_here_and_back_is_the_same_byte_for_byte,
            what_does_not_exist_is_not_found
        }
    };
}

/// A test for each demand, with a store of its own.
macro_rules! one_by_one {
    ([$store:ident] $($demand:ident),*) => {
        mod $store {
            use crate::{stores, suite};

            $(#[tokio::test]
            async fn $demand() {
                suite::$demand(&stores::$store().await).await;
            })*
        }
    };
}

/// One test for all demands, each with a repository of its own: for servers that take long to start.
macro_rules! in_turn {
    ([$store:ident] $($demand:ident),*) => {
        #[tokio::test]
        async fn $store() {
            let server = stores::$store();
            $({
                let started = std::time::Instant::now();
                suite::$demand(&server.repository(stringify!($demand)).await).await;
                // Seen when it fails: where it was, and what takes long.
                eprintln!("{:6} ms  {}", started.elapsed().as_millis(), stringify!($demand));
            })*
        }
    };
}

all_demands!(one_by_one directory);
all_demands!(one_by_one memory);
all_demands!(one_by_one s3);
all_demands!(one_by_one gcs);
all_demands!(in_turn seaweedfs);
all_demands!(in_turn moto);
all_demands!(in_turn azurite);

/// What the program does on each store.
macro_rules! serves_the_program {
    ($($store:ident),*) => {
        mod the_program_on {
            use crate::{program, stores};

            $(#[test]
            fn $store() {
                stores::program::$store(program::does_it_all);
            })*
        }
    };
}

serves_the_program!(directory, s3, gcs, seaweedfs, moto, azurite);
