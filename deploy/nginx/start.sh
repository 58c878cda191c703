#!/bin/sh
# What does nginx know only when it starts? Whether there is a certificate, and which proxies before it tell clients' addresses.
#
# FOLDER is the only folder that nginx writes to. The configuration there consists of links, so that a reload (SIGHUP) reads what
# is in this folder at that time.
#   start.sh FOLDER [OPTIONS OF NGINX…]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=$1
certificate=${SLUICE_TLS_FOLDER_INSIDE:-/etc/nginx/tls}
shift

ln -sf "$here/nginx.conf" "$here/api-servers.conf" "$folder/"
if [ -e "$certificate" ]; then
  for file in tls.crt tls.key; do
    [ -r "$certificate/$file" ] || { echo "$certificate/$file is missing, or user $(id -u) may not read it." >&2; exit 1; }
  done
  ln -sf "$here/listen-tls.conf" "$folder/listen.conf"
  ln -sf "$here/redirect.conf" "$folder/redirect.conf"
else
  ln -sf "$here/listen-plain.conf" "$folder/listen.conf"
  rm -f "$folder/redirect.conf"
fi

: >"$folder/proxies.conf"
for proxy in $(echo "${SLUICE_TRUSTED_PROXIES:-}" | tr , ' '); do
  case $proxy in
    *[!0-9A-Fa-f:./]*) echo "SLUICE_TRUSTED_PROXIES: $proxy is neither an address nor a network such as 10.0.0.0/8." >&2; exit 1 ;;
  esac
  echo "set_real_ip_from $proxy;" >>"$folder/proxies.conf"
done

exec nginx -e stderr -p "$folder/" -c "$folder/nginx.conf" -g 'daemon off;' "$@"
