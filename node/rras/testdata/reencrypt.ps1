# SSTP of rras1 behind vpnlb: VIP vpn, mode reencrypt, port 443.
# Certificate public2026, valid until 2027-03-14 12:00 UTC; SHA-256 of its DER:
#   5A61686F767D848B9299A0A7AEB5BCC3CAD1D8DFE6EDF4FB020910171E252C33
#
# WARNING: where a value changes, this restarts RemoteAccess, which ends ALL tunnels of rras1,
# those of IKEv2 too. So, on any node, before:
#   vpnlb backend drain rras1
#   vpnlb affinity list --backend rras1     # until it is empty, or your maintenance window begins
# then this, in a PowerShell of an administrator on rras1, and on a node after it:
#   vpnlb backend enable rras1
#
# It may be run again: where every value is right it changes nothing and restarts nothing.
& {
    $ErrorActionPreference = 'Stop'
    $path = 'HKLM:\SYSTEM\CurrentControlSet\Services\SstpSvc\Parameters'
    if (-not (Test-Path -Path $path)) { throw 'no SSTP on this server: install the role service DirectAccess and VPN (RAS) first' }
    function Read-Value($name) { (Get-Item -Path $path).GetValue($name, $null) }
    function Read-Hash {
        $bytes = (Get-Item -Path $path).GetValue('SHA256CertificateHash', $null)
        if ($null -eq $bytes) { return 'none' }
        return [BitConverter]::ToString([byte[]] $bytes).Replace('-', '')
    }
    $hex = '5A61686F767D848B9299A0A7AEB5BCC3CAD1D8DFE6EDF4FB020910171E252C33'
    $hash = New-Object byte[] 32
    for ($i = 0; $i -lt 32; $i++) { $hash[$i] = [Convert]::ToByte($hex.Substring(2 * $i, 2), 16) }
    # The server shows a certificate of its own store, with its private key.
    $sha = [Security.Cryptography.SHA256]::Create()
    $certificate = Get-ChildItem -Path 'Cert:\LocalMachine\My' |
        Where-Object { [BitConverter]::ToString($sha.ComputeHash($_.RawData)).Replace('-', '') -eq $hex } |
        Select-Object -First 1
    if ($null -eq $certificate) { throw "no certificate with the SHA-256 $hex in LocalMachine\My: import public2026 with its private key first" }
    if (-not $certificate.HasPrivateKey) { throw "the certificate $($certificate.Subject) is here without its private key: import it as a PFX" }
    function Test-Binding { (netsh.exe http show sslcert 'ipport=0.0.0.0:443' | Out-String) -match $certificate.Thumbprint }
    function Find-Difference {
        if ((Read-Value 'UseHttps') -ne 1) { 'UseHttps' }
        if ((Read-Value 'isHashConfiguredByAdmin') -ne 1) { 'isHashConfiguredByAdmin' }
        if ((Read-Hash) -ne $hex) { 'SHA256CertificateHash' }
        # Absent or 0 is the default, 443 in this mode (check this: netsh http show servicestate).
        if (@($null, 0, 443) -notcontains (Read-Value 'ListenerPort')) { 'ListenerPort' }
        if (-not (Test-Binding)) { 'certificate of the listener' }
    }
    $differences = @(Find-Difference)
    if ($null -ne (Read-Value 'SHA1CertificateHash')) { $differences += 'SHA1CertificateHash' }
    if ($differences.Count -eq 0) {
        'Every value is right already; nothing was changed. If the cluster still tells of a wrong hash,'
        'RemoteAccess has not been restarted since: Restart-Service -Name RemoteAccess -Force'
        return
    }
    "Differs: $($differences -join ', ')"
    $saved = Join-Path -Path $env:SystemRoot -ChildPath ('Temp\vpnlb-sstp-' + (Get-Date -Format 'yyyyMMdd-HHmmss') + '.reg')
    reg.exe export 'HKLM\SYSTEM\CurrentControlSet\Services\SstpSvc\Parameters' $saved /y | Out-Null
    if ($LASTEXITCODE -ne 0) { throw "cannot save the present values in $saved; nothing was changed" }
    "The values before are in $saved"
    if (-not (Test-Binding)) { Set-RemoteAccess -SslCertificate $certificate }
    New-ItemProperty -Path $path -Name 'UseHttps' -PropertyType DWord -Value 1 -Force | Out-Null
    New-ItemProperty -Path $path -Name 'isHashConfiguredByAdmin' -PropertyType DWord -Value 1 -Force | Out-Null
    New-ItemProperty -Path $path -Name 'SHA256CertificateHash' -PropertyType Binary -Value $hash -Force | Out-Null
    if ($null -ne (Read-Value 'SHA1CertificateHash')) { Remove-ItemProperty -Path $path -Name 'SHA1CertificateHash' }
    if ($differences -contains 'ListenerPort') {
        New-ItemProperty -Path $path -Name 'ListenerPort' -PropertyType DWord -Value 443 -Force | Out-Null
    }
    try { Restart-Service -Name RemoteAccess -Force }
    catch { throw "the values are written, but RemoteAccess did not restart ($_): run Restart-Service -Name RemoteAccess -Force" }
    $left = @(Find-Difference)
    "UseHttps          $(Read-Value 'UseHttps')"
    "isHashConfiguredByAdmin $(Read-Value 'isHashConfiguredByAdmin')"
    "SHA256CertificateHash $(Read-Hash)"
    "ListenerPort      $(Read-Value 'ListenerPort')"
    if ($left.Count -ne 0) { throw "read back and still different: $($left -join ', ')" }
    if ($null -ne (Read-Value 'SHA1CertificateHash')) { Write-Warning 'SHA1CertificateHash is back: RemoteAccess wrote it again; check this with a test call' }
    'Done. Next, on a node: vpnlb cert rotate public2026 --vip vpn --server rras1, then vpnlb backend enable rras1, then vpnlb sstp status'
}
