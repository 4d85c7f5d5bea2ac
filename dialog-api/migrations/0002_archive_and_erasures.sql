-- Old messages go to a table of their own, and users can be erased.

-- Messages older than a configured age, as they were in messages. In that table stays at least the newest message of
-- each dialog, and its oldest one there says that older ones are here: who reads a dialog without any, or not that
-- far, never asks this table.
CREATE TABLE messages_archive (
    dialog_id     uuid        NOT NULL,
    message_id    uuid        NOT NULL,
    from_user_id  uuid        NOT NULL,
    to_user_id    uuid        NOT NULL,
    text          text        NOT NULL,
    client_msg_id uuid,
    created_at    timestamptz NOT NULL,
    edited_at     timestamptz,
    deleted_at    timestamptz,
    PRIMARY KEY (dialog_id, message_id)
);

ALTER TABLE messages ADD COLUMN older_archived boolean NOT NULL DEFAULT false;

-- One of the two was erased: nobody can write any more.
ALTER TABLE dialogs ADD COLUMN closed boolean NOT NULL DEFAULT false;

-- Users who asked to be erased, until the last of their tokens has ended. swept_at is when what they wrote was gone
-- through for the first time, finished_at when nothing was left.
CREATE TABLE erasures (
    user_id      uuid        NOT NULL,
    requested_at timestamptz NOT NULL,
    swept_at     timestamptz,
    finished_at  timestamptz,
    PRIMARY KEY (user_id)
);
