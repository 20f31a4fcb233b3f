PGB=/usr/lib/postgresql/15/bin
runuser -u postgres -- $PGB/initdb -D /tmp/x/pg -A trust -U keypool >/dev/null
runuser -u postgres -- $PGB/pg_ctl -D /tmp/x/pg -o "-p 5544 -k /tmp/x -c shared_buffers=1GB -c max_wal_size=4GB" -l /tmp/x/log -w start
runuser -u postgres -- $PGB/createdb -h /tmp/x -p 5544 -U keypool k
