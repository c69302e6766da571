-- App038's main database, as Laravel migrations would have made it. Run as the application's role.
CREATE TYPE order_status AS ENUM ('pending', 'paid', 'shipped', 'delivered', 'cancelled');
CREATE TYPE payment_method AS ENUM ('card', 'sepa', 'invoice', 'voucher');

CREATE TABLE migrations (id serial PRIMARY KEY, migration varchar(255) NOT NULL, batch integer NOT NULL);
INSERT INTO migrations (migration, batch) VALUES
    ('0001_01_01_000000_create_users_table', 1),
    ('0001_01_01_000002_create_jobs_table', 1),
    ('2026_02_11_091500_create_orders_tables', 2),
    ('2026_05_30_140210_create_documents_table', 3);

CREATE TABLE users (
    id bigserial PRIMARY KEY,
    name varchar(255) NOT NULL,
    email varchar(255) NOT NULL CONSTRAINT users_email_unique UNIQUE,
    email_verified_at timestamptz,
    password varchar(255) NOT NULL,
    remember_token varchar(100),
    settings jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX users_name_trigram ON users USING gin (name gin_trgm_ops);

CREATE TABLE products (
    id bigserial PRIMARY KEY,
    sku varchar(32) NOT NULL CONSTRAINT products_sku_unique UNIQUE,
    title varchar(255) NOT NULL,
    price_cents integer NOT NULL CHECK (price_cents >= 0),
    attributes jsonb NOT NULL DEFAULT '{}'
);

CREATE SEQUENCE invoice_numbers START 100000;

CREATE TABLE orders (
    id bigserial PRIMARY KEY,
    user_id bigint NOT NULL REFERENCES users,
    uuid uuid NOT NULL DEFAULT gen_random_uuid() CONSTRAINT orders_uuid_unique UNIQUE,
    invoice_number bigint NOT NULL DEFAULT nextval('invoice_numbers'),
    status order_status NOT NULL DEFAULT 'pending',
    total_cents bigint NOT NULL DEFAULT 0,
    shipping jsonb NOT NULL DEFAULT '{}',
    placed_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX orders_user_id ON orders (user_id);
CREATE INDEX orders_open ON orders (placed_at) WHERE status = 'pending';

CREATE TABLE order_lines (
    id bigserial PRIMARY KEY,
    order_id bigint NOT NULL REFERENCES orders ON DELETE CASCADE,
    product_id bigint NOT NULL REFERENCES products,
    quantity integer NOT NULL CHECK (quantity > 0),
    unit_price_cents integer NOT NULL,
    note text
);
CREATE INDEX order_lines_order_id ON order_lines (order_id);

CREATE TABLE payments (
    id bigserial PRIMARY KEY,
    order_id bigint NOT NULL REFERENCES orders,
    method payment_method NOT NULL,
    amount_cents bigint NOT NULL,
    provider_reference varchar(64) NOT NULL CONSTRAINT payments_provider_reference_unique UNIQUE,
    provider_answer jsonb NOT NULL DEFAULT '{}',
    paid_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX payments_order_id ON payments (order_id);

CREATE TABLE documents (
    id bigserial PRIMARY KEY,
    user_id bigint NOT NULL REFERENCES users,
    name varchar(255) NOT NULL,
    mime_type varchar(64) NOT NULL,
    content bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE documents ALTER COLUMN content SET STORAGE EXTERNAL;

-- The content is a large object: what pg_dump treats apart, and what a read-only role does not see by itself.
CREATE TABLE attachments (id bigserial PRIMARY KEY, name varchar(255) NOT NULL, content oid NOT NULL);

CREATE TABLE sessions (
    id varchar(64) PRIMARY KEY,
    user_id bigint REFERENCES users ON DELETE SET NULL,
    ip_address inet,
    user_agent text,
    payload text NOT NULL,
    last_activity integer NOT NULL
);
CREATE INDEX sessions_last_activity ON sessions (last_activity);

CREATE TABLE jobs (
    id bigserial PRIMARY KEY,
    queue varchar(255) NOT NULL,
    payload text NOT NULL,
    attempts smallint NOT NULL DEFAULT 0,
    reserved_at integer,
    available_at integer NOT NULL,
    created_at integer NOT NULL
);
CREATE INDEX jobs_queue ON jobs (queue);

CREATE TABLE audit_log (
    id bigserial,
    happened_at timestamptz NOT NULL DEFAULT now(),
    actor_id bigint,
    action varchar(64) NOT NULL,
    details jsonb NOT NULL DEFAULT '{}'
) TABLESPACE app038_archive;
CREATE INDEX audit_log_happened_at ON audit_log USING brin (happened_at) TABLESPACE app038_archive;

CREATE VIEW open_orders AS
    SELECT orders.id, users.email, orders.total_cents, orders.placed_at
    FROM orders JOIN users ON users.id = orders.user_id WHERE orders.status = 'pending';
