-- The tables of the service: ordinary PostgreSQL tables, ready to be distributed by Citus.
--
-- Tables of a dialog are keyed by dialog_id, tables of a user by user_id. Every primary and unique key
-- contains its table's distribution column, and no foreign key leaves a table, so that distributing them
-- (by whoever owns the cluster) changes nothing here.

-- Group "dialog" ------------------------------------------------------------------------------------

-- message_id is a UUIDv7 made by the service before its first attempt to write: listing newest first
-- is a backward scan of the primary key, and writing the same message twice is harmless.
CREATE TABLE messages (
    dialog_id     uuid        NOT NULL,
    message_id    uuid        NOT NULL,
    from_user_id  uuid        NOT NULL,
    to_user_id    uuid        NOT NULL,
    text          text        NOT NULL CHECK (char_length(text) <= 4096),
    client_msg_id uuid,
    created_at    timestamptz NOT NULL,
    edited_at     timestamptz,
    deleted_at    timestamptz,
    PRIMARY KEY (dialog_id, message_id)
);

-- A client's own id for a message makes sending idempotent.
CREATE UNIQUE INDEX messages_client_msg_id
    ON messages (dialog_id, from_user_id, client_msg_id)
    WHERE client_msg_id IS NOT NULL;

-- The inbox's sweep looks for recent messages, whatever their dialog. Costs next to nothing to keep.
CREATE INDEX messages_created_at ON messages USING brin (created_at) WITH (autosummarize = on);

-- The pair behind each dialog_id: proof that two pairs do not share one. inbox_id is the newest message that
-- both inboxes are known to have.
CREATE TABLE dialogs (
    dialog_id  uuid        NOT NULL,
    user_lo    uuid        NOT NULL,
    user_hi    uuid        NOT NULL,
    created_at timestamptz NOT NULL,
    inbox_id   uuid,
    PRIMARY KEY (dialog_id),
    CHECK (user_lo <= user_hi)
);

-- How far each of the two has read.
CREATE TABLE dialog_state (
    dialog_id    uuid NOT NULL,
    user_id      uuid NOT NULL,
    last_read_id uuid NOT NULL,
    PRIMARY KEY (dialog_id, user_id)
);

-- Group "user" --------------------------------------------------------------------------------------

CREATE TABLE users (
    user_id     uuid        NOT NULL,
    first_name  text        NOT NULL,
    second_name text        NOT NULL,
    birthdate   date,
    biography   text,
    city        text,
    created_at  timestamptz NOT NULL,
    PRIMARY KEY (user_id)
);

-- Searching by prefixes of both names. LIKE uses an index of this operator class whatever the collation.
CREATE INDEX users_names ON users (lower(first_name) text_pattern_ops, lower(second_name) text_pattern_ops);

CREATE TABLE credentials (
    user_id       uuid        NOT NULL,
    password_hash text        NOT NULL,
    updated_at    timestamptz NOT NULL,
    PRIMARY KEY (user_id)
);

-- A user's inbox: the dialogs and how new each is. It follows the messages at a short distance. Message ids are
-- unique everywhere, so their order is the inbox's.
CREATE TABLE user_dialogs (
    user_id         uuid NOT NULL,
    dialog_id       uuid NOT NULL,
    peer_id         uuid NOT NULL,
    last_message_id uuid NOT NULL,
    PRIMARY KEY (user_id, dialog_id)
);

CREATE INDEX user_dialogs_newest ON user_dialogs (user_id, last_message_id DESC);

-- Of the service itself, small, never distributed ----------------------------------------------------

-- Up to what time a job that looks for things left undone has looked.
CREATE TABLE sweeps (
    name     text        NOT NULL,
    swept_to timestamptz NOT NULL,
    PRIMARY KEY (name)
);
