#!/bin/sh
# Unpacks Debian's headless Chromium into the folder $1 and writes $1/chromium, which starts it, for the tests that open
# a page. It needs no root and changes nothing else; where a browser is on PATH, or apt is not, it does nothing.
set -e
for browser in chromium chromium-browser chromium-headless-shell google-chrome; do
    if command -v "$browser" >/dev/null; then exit 0; fi
done
command -v apt-get >/dev/null || exit 0

rm -rf "$1"
mkdir -p "$1/lists/partial" "$1/archives/partial"
cd "$1"
folder=$PWD
apt() {
    apt-get -qq -o Dir::State::lists="$folder/lists" -o Dir::Cache="$folder" -o APT::Sandbox::User="$(id -un)" "$@"
}
apt update
packages=$(apt install --simulate --no-install-recommends chromium-headless-shell fonts-dejavu-core |
    sed -n 's/^Inst \([^ ]*\) .*/\1/p')
cd archives
apt download $packages
for package in *.deb; do dpkg-deb -x "$package" "$folder"; done
cd "$folder"
rm -r archives lists

libraries=$(find "$folder" -name '*.so*' -printf '%h\n' | sort -u | paste -sd:)
cat >fonts.conf <<EOF
<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir>$folder/usr/share/fonts</dir><dir>/usr/share/fonts</dir><cachedir>$folder/fontcache</cachedir>
</fontconfig>
EOF
cat >chromium <<EOF
#!/bin/sh
export LD_LIBRARY_PATH="$libraries" FONTCONFIG_FILE="$folder/fonts.conf"
exec "$folder/usr/lib/chromium/chromium-headless-shell" "\$@"
EOF
chmod +x chromium
