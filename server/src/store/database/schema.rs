//! The tables of `migrations/`, the same for both databases.

diesel::table! {
    users (name) {
        name -> Text,
        created_at -> BigInt,
        devices_version -> BigInt,
    }
}

diesel::table! {
    devices (id) {
        id -> BigInt,
        user_name -> Text,
        device_name -> Text,
        token_hash -> Binary,
        created_at -> BigInt,
        last_upload -> Nullable<BigInt>,
        removed_at -> Nullable<BigInt>,
        registration_key -> Nullable<Binary>,
    }
}

diesel::table! {
    key_packages (keypackage_ref) {
        keypackage_ref -> Binary,
        device_id -> BigInt,
        ciphersuite -> Integer,
        key_package -> Binary,
        not_after -> BigInt,
        last_resort -> Bool,
        state -> Text,
        reservation -> Nullable<Binary>,
        reserved_by -> Nullable<BigInt>,
        reserved_until -> Nullable<BigInt>,
        ended_at -> Nullable<BigInt>,
        spent_group -> Nullable<Binary>,
        fresh -> Bool,
        handed_out -> Bool,
        held -> Bool,
        live -> Bool,
        package_id -> Nullable<Binary>,
        step -> Integer,
        opened -> Nullable<BigInt>,
    }
}

diesel::table! {
    hpke_keys (device_id, public_key) {
        device_id -> BigInt,
        public_key -> Binary,
        keypackage_ref -> Binary,
        not_after -> BigInt,
    }
}

diesel::table! {
    audit_events (id) {
        id -> BigInt,
        device_id -> BigInt,
        keypackage_ref -> Binary,
        action -> Text,
        actor -> Nullable<BigInt>,
        reservation -> Nullable<Binary>,
        group_id -> Nullable<Binary>,
        last_resort -> Bool,
        at -> BigInt,
        until -> Nullable<BigInt>,
        signature_key -> Nullable<Binary>,
        package_id -> Nullable<Binary>,
        step -> Nullable<Integer>,
        bind -> Nullable<Binary>,
        opened -> Nullable<BigInt>,
    }
}

diesel::table! {
    signature_keys (device_id, registered_at, ciphersuite, signature_key) {
        device_id -> BigInt,
        registered_at -> BigInt,
        ciphersuite -> Integer,
        signature_key -> Binary,
        since -> BigInt,
        until -> Nullable<BigInt>,
    }
}

diesel::table! {
    idempotency_keys (device_id, key) {
        device_id -> BigInt,
        key -> Binary,
        request -> Binary,
        answer -> Binary,
        expires_at -> BigInt,
    }
}

diesel::table! {
    enrolments (token_hash) {
        token_hash -> Binary,
        user_name -> Text,
        created_at -> BigInt,
        expires_at -> BigInt,
    }
}

diesel::table! {
    device_links (device_id) {
        device_id -> BigInt,
        user_name -> Text,
        code_hash -> Binary,
        made_with -> Binary,
        expires_at -> BigInt,
        guesses -> Integer,
        used_by -> Nullable<Text>,
    }
}

diesel::table! {
    commits (group_id, epoch) {
        group_id -> Binary,
        epoch -> BigInt,
        digest -> Binary,
        proof_digest -> Nullable<Binary>,
        at -> BigInt,
        superseded -> Bool,
    }
}

diesel::table! {
    group_infos (group_id) {
        group_id -> Binary,
        epoch -> BigInt,
        group_info -> Binary,
        user_name -> Text,
        size -> Integer,
        at -> BigInt,
    }
}

diesel::table! {
    group_members (group_id, device_id) {
        group_id -> Binary,
        device_id -> BigInt,
    }
}

diesel::table! {
    envelopes (id) {
        id -> BigInt,
        sender -> BigInt,
        kind -> Text,
        group_id -> Binary,
        message -> Binary,
        at -> BigInt,
        expires_at -> BigInt,
    }
}

diesel::table! {
    deliveries (id) {
        id -> BigInt,
        device_id -> BigInt,
        envelope_id -> BigInt,
        sender -> Nullable<BigInt>,
        cost -> Integer,
        part -> SmallInt,
    }
}

diesel::table! {
    lineage (id) {
        id -> Integer,
        origin -> Text,
        generation -> BigInt,
        fenced_at -> Nullable<BigInt>,
    }
}

diesel::table! {
    server_keys (name) {
        name -> Text,
        key -> Binary,
    }
}

diesel::table! {
    log_origins (k) {
        k -> Integer,
        name -> Text,
        key -> Nullable<Text>,
        key_note -> Nullable<Text>,
        kept_size -> Nullable<BigInt>,
        kept_root -> Nullable<Binary>,
        first_entry -> BigInt,
    }
}

diesel::table! {
    log_ages (k, at) {
        k -> Integer,
        at -> BigInt,
        size -> BigInt,
    }
}

diesel::table! {
    log_state (id) {
        id -> Integer,
        k -> Integer,
        size -> BigInt,
        root -> Binary,
        at -> BigInt,
        last_event -> BigInt,
    }
}

diesel::table! {
    log_tiles (k, level, number) {
        k -> Integer,
        level -> SmallInt,
        number -> BigInt,
        bytes -> Binary,
    }
}

diesel::table! {
    log_positions (chunk) {
        chunk -> BigInt,
        positions -> Binary,
    }
}

diesel::table! {
    log_secrets (device_id) {
        device_id -> BigInt,
        secret -> Binary,
    }
}

diesel::joinable!(deliveries -> envelopes (envelope_id));
diesel::allow_tables_to_appear_in_same_query!(users, devices, key_packages, hpke_keys, audit_events, signature_keys);
diesel::allow_tables_to_appear_in_same_query!(devices, deliveries, envelopes);
diesel::allow_tables_to_appear_in_same_query!(log_ages, log_origins);
diesel::allow_tables_to_appear_in_same_query!(devices, lineage);
diesel::allow_tables_to_appear_in_same_query!(devices, device_links);
diesel::allow_tables_to_appear_in_same_query!(devices, group_infos, group_members);
