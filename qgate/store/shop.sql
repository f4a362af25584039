-- The sample database: a small shop with two years of orders. Made by its owner role, from a fixed seed.

SELECT setseed(0.2718);

CREATE TABLE customers (
    id         integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL,
    email      text NOT NULL UNIQUE,
    city       text NOT NULL,
    country    char(2) NOT NULL,
    created_at timestamptz NOT NULL
);

CREATE TABLE products (
    id       integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sku      text NOT NULL UNIQUE,
    name     text NOT NULL,
    category text NOT NULL,
    price    numeric(8, 2) NOT NULL CHECK (price > 0),
    stock    integer NOT NULL CHECK (stock >= 0)
);

CREATE TABLE orders (
    id          integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_id integer NOT NULL REFERENCES customers (id),
    ordered_at  timestamptz NOT NULL,
    status      text NOT NULL CHECK (status IN ('open', 'paid', 'shipped', 'delivered', 'cancelled', 'returned')),
    total       numeric(10, 2) NOT NULL DEFAULT 0
);

CREATE TABLE order_items (
    order_id   integer NOT NULL REFERENCES orders (id) ON DELETE CASCADE,
    line       smallint NOT NULL,
    product_id integer NOT NULL REFERENCES products (id),
    quantity   smallint NOT NULL CHECK (quantity > 0),
    unit_price numeric(8, 2) NOT NULL,
    PRIMARY KEY (order_id, line)
);

INSERT INTO customers (name, email, city, country, created_at)
SELECT first || ' ' || last,
       lower(first) || '.' || lower(last) || n || '@' || (ARRAY['example.com', 'example.net', 'example.org'])[1 + n % 3],
       place[1], place[2],
       timestamptz '2024-01-01 08:00+00' + n * interval '4 hours' + random() * interval '3 hours'
FROM (
    SELECT n,
           (ARRAY['Ada', 'Amir', 'Anna', 'Björn', 'Camille', 'Chen', 'Clara', 'Diego', 'Elena', 'Emil', 'Fatima',
                  'Felix', 'Grace', 'Hugo', 'Ines', 'Ivan', 'Jana', 'Jonas', 'Kofi', 'Lena', 'Liam', 'Lucia', 'Mads',
                  'Maria', 'Mei', 'Nadia', 'Noah', 'Olga', 'Oscar', 'Petra', 'Priya', 'Rosa', 'Samir', 'Sofia',
                  'Tomas', 'Uma', 'Viktor', 'Yara', 'Yusuf', 'Zoe'])[1 + floor(random() * 40)::int] AS first,
           (ARRAY['Abel', 'Bauer', 'Costa', 'Dubois', 'Eriksen', 'Fischer', 'Garcia', 'Hansen', 'Ibrahim', 'Jansen',
                  'Keller', 'Larsen', 'Martin', 'Novak', 'Okafor', 'Popescu', 'Quinn', 'Rossi', 'Schmidt', 'Tanaka',
                  'Ueda', 'Varga', 'Weber', 'Xu', 'Yilmaz', 'Zimmer', 'Moreau', 'Lindt', 'Petrov', 'Silva'])
               [1 + floor(random() * 30)::int] AS last
    FROM generate_series(1, 4000) AS n
) AS people,
LATERAL (
    SELECT CASE (n * 7 + n / 16) % 16
        WHEN 0 THEN ARRAY['Amsterdam', 'NL'] WHEN 1 THEN ARRAY['Barcelona', 'ES'] WHEN 2 THEN ARRAY['Berlin', 'DE']
        WHEN 3 THEN ARRAY['Copenhagen', 'DK'] WHEN 4 THEN ARRAY['Dublin', 'IE'] WHEN 5 THEN ARRAY['Geneva', 'CH']
        WHEN 6 THEN ARRAY['Hamburg', 'DE'] WHEN 7 THEN ARRAY['Lisbon', 'PT'] WHEN 8 THEN ARRAY['Lyon', 'FR']
        WHEN 9 THEN ARRAY['Milan', 'IT'] WHEN 10 THEN ARRAY['Oslo', 'NO'] WHEN 11 THEN ARRAY['Paris', 'FR']
        WHEN 12 THEN ARRAY['Prague', 'CZ'] WHEN 13 THEN ARRAY['Stockholm', 'SE'] WHEN 14 THEN ARRAY['Vienna', 'AT']
        ELSE ARRAY['Warsaw', 'PL'] END AS place
) AS home;

INSERT INTO products (sku, name, category, price, stock)
SELECT upper(left(category, 3)) || '-' || lpad(n::text, 4, '0'),
       adjective || ' ' || thing, category,
       greatest(1.90, round((base * (0.6 + random() * 1.4))::numeric, 1) - 0.01 + 0.1), floor(random() * 400)::int
FROM generate_series(1, 500) AS n,
LATERAL (
    SELECT (ARRAY['Oak', 'Linen', 'Copper', 'Folding', 'Compact', 'Classic', 'Nordic', 'Travel', 'Everyday', 'Wool',
                  'Ceramic', 'Alpine', 'Harbour', 'Slim', 'Bright', 'Recycled', 'Handmade', 'Midnight', 'Garden',
                  'Vintage'])[1 + (n * 13) % 20] AS adjective,
           (ARRAY['kitchen', 'kitchen', 'office', 'office', 'outdoor', 'outdoor', 'living', 'living', 'textile',
                  'textile'])[1 + n % 10] AS category,
           (ARRAY['kettle', 'cutting board', 'desk lamp', 'notebook', 'tent', 'backpack', 'shelf', 'armchair', 'blanket',
                  'cushion'])[1 + n % 10] AS thing,
           (ARRAY[45, 28, 59, 9, 180, 89, 120, 340, 65, 24])[1 + n % 10] AS base
) AS kind;

INSERT INTO orders (customer_id, ordered_at, status)
SELECT 1 + floor(power(random(), 1.6) * 4000)::int,
       timestamptz '2024-11-01 06:00+00' + (n * interval '2 hours') + random() * interval '110 minutes',
       CASE WHEN n > 8420 THEN 'open' WHEN n > 8330 THEN 'paid' WHEN n > 8200 THEN 'shipped'
            WHEN random() < 0.03 THEN 'cancelled' WHEN random() < 0.04 THEN 'returned' ELSE 'delivered' END
FROM generate_series(1, 8500) AS n;

INSERT INTO order_items (order_id, line, product_id, quantity, unit_price)
SELECT orders.id, line, products.id, 1 + floor(power(random(), 3) * 5)::int, products.price
FROM orders,
LATERAL generate_series(1, 1 + (orders.id * 7 + orders.customer_id) % 3) AS line,
LATERAL (SELECT 1 + (orders.id * 31 + line * 97 + orders.customer_id * 5) % 500 AS number) AS choice
JOIN products ON products.id = choice.number;

UPDATE orders SET total = sums.total
FROM (SELECT order_id, sum(quantity * unit_price) AS total FROM order_items GROUP BY order_id) AS sums
WHERE sums.order_id = orders.id;

CREATE INDEX orders_customer ON orders (customer_id, ordered_at);
CREATE INDEX orders_ordered_at ON orders (ordered_at);
CREATE INDEX order_items_product ON order_items (product_id);
CREATE INDEX products_category ON products (category);
CREATE INDEX customers_country ON customers (country);

CREATE VIEW monthly_revenue AS
SELECT date_trunc('month', ordered_at) AS month, count(*) AS orders, sum(total) AS revenue
FROM orders WHERE status NOT IN ('cancelled', 'returned')
GROUP BY 1 ORDER BY 1;

COMMENT ON TABLE customers IS 'Who bought; all of them invented';
COMMENT ON TABLE products IS 'What can be bought';
COMMENT ON TABLE orders IS 'One row an order; total is the sum of its items';
COMMENT ON TABLE order_items IS 'One row a line of an order, at the price of its day';

GRANT USAGE ON SCHEMA public TO shop_reader;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO shop_reader;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO shop_reader;
ANALYZE;
